// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// What a path or a descriptor stands for, as `fstat(2)` tells it.
struct FileKind {
  private let type: mode_t
  /// The device that a device node stands for.
  private let device: dev_t

  init(_ status: stat) {
    type = status.st_mode & S_IFMT
    device = status.st_rdev
  }

  var isBlockDevice: Bool { type == S_IFBLK }

  /// Whether requests can be made on it.
  var isSupported: Bool { type == S_IFREG || type == S_IFBLK }

  /// The refusal of a kind that no requests can be made on: what it is, and what to use instead.
  func refusal(_ subject: AIOError.Subject) -> AIOError {
    let (name, advice) = words
    return AIOError(
      .unsupportedFile, subject,
      .text(
        "\(name); asynchronous file I/O is for regular files and block devices: \(advice)"))
  }

  private var words: (name: String, advice: String) {
    let source = "use a DispatchSource for pipes, sockets and terminals"
    let thread = "use read(2) and write(2) on a thread of your own"
    switch type {
    case S_IFDIR: return ("it is a directory", "open a file in it")
    case S_IFIFO: return ("it is a pipe", source)
    case S_IFSOCK: return ("it is a socket", source)
    case S_IFLNK:
      return ("it is a symbolic link", "open what it points to, or leave .noFollow out")
    case S_IFCHR:
      if isTerminal { return ("it is a terminal", source) }
      return (isTape ? "it is a tape" : "it is a character device", thread)
    default:
      return (
        "it is neither a file nor a device", "use a DispatchSource for an eventfd or the like"
      )
    }
  }

  /// The numbers of Documentation/admin-guide/devices.txt, so that nothing need be opened to know:
  /// consoles, serial lines, and both ends of pseudo-terminals.
  private var isTerminal: Bool {
    [2, 3, 4, 5, 166, 188, 204, 229].contains(major) || (136...143).contains(major)
  }

  private var isTape: Bool { [9, 37, 206].contains(major) }

  private var major: UInt64 { UInt64(device) >> 8 & 0xfff | UInt64(device) >> 32 & ~0xfff }
}
