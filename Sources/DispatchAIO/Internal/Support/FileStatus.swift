// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import SystemPackage

extension ckernel_status {
  /// What the kernel says of an open file, or of what a descriptor with `O_PATH` names. Corresponds
  /// to `statx(2)`.
  ///
  /// - Parameter asksNobody: Whether no process and no machine that serves the file is asked: the
  ///   mount and the type are sure then, the rest is what the kernel has at hand.
  init(of descriptor: Int32, asksNobody: Bool = false) throws(Errno) {
    self.init()
    // The structure is filled during the call.
    let answer = unsafe ckernel_status(descriptor, asksNobody ? 1 : 0, &self)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }
}
