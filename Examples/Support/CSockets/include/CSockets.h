// SPDX-License-Identifier: Apache-2.0
//
// The socket calls that Swift's Glibc overlay hides.

#ifndef CSOCKETS_H
#define CSOCKETS_H

#include <sys/socket.h>

// accept4(2), non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_accept(int fd, struct sockaddr_storage *address, socklen_t *length);

// socket(2), non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_stream_socket(int family);

#endif
