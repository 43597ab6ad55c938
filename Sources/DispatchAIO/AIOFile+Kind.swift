// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// The kind of a file, from the answer of `fstat(2)` or `statx(2)`.
struct FileKind {
  private let type: mode_t
  /// The device number of a device node.
  private let device: dev_t

  init(_ status: stat) {
    type = status.st_mode & S_IFMT
    device = status.st_rdev
  }

  init(_ status: clinux_status) {
    type = status.mode & S_IFMT
    device = dev_t(status.represented_device)
  }

  var isRegular: Bool { type == S_IFREG }

  var isBlockDevice: Bool { type == S_IFBLK }

  /// Whether the library supports requests on files of this kind.
  var isSupported: Bool { type == S_IFREG || type == S_IFBLK }

  /// The error for a kind that is not supported, which names it and says what to use instead.
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

  /// Whether the device is a console, a serial line, or either end of a pseudo-terminal, by the
  /// major numbers of Documentation/admin-guide/devices.txt, so that it need not be opened.
  private var isTerminal: Bool {
    [2, 3, 4, 5, 166, 188, 204, 229].contains(major) || (136...143).contains(major)
  }

  private var isTape: Bool { [9, 37, 206].contains(major) }

  /// The major number, as glibc's `gnu_dev_major` takes it from a device number.
  private var major: UInt64 { UInt64(device) >> 8 & 0xfff | UInt64(device) >> 32 & ~0xfff }
}
