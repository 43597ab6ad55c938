#include <sys/uio.h>
#include <libaio.h>
