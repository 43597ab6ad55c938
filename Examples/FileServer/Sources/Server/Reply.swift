// SPDX-License-Identifier: Apache-2.0

import DispatchAIO

/// An answer that is being sent: what of its file is still to be read and sent.
struct Reply {
  var status = 200
  var keepsAlive = true
  var isOld = false
  var isHead = false
  /// Nothing of the head is in the output yet: it is written with the first bytes of the body.
  var isHeadPending = false
  var file: ServedFile?
  /// The length of the body.
  var length: Int64 = 0
  /// The rest of the range that is being sent.
  var position: Int64 = 0
  var end: Int64 = 0
  /// The range that the head tells of, if only one was asked for.
  var range: Range<Int64>?
  var multipart: Multipart?
  /// Of the multipart's ranges.
  var nextPart = 0
  /// Bytes of the body, for the log.
  var sent: Int64 = 0
  var logged: AccessLog.Request?
  /// What tells the request from others of its loop, if it has waited to be looked up; else 0.
  var ticket = 0
  /// Whether it waits for a descriptor, to open its file with.
  var isWaitingForDescriptor = false
}
