// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

extension AIOFile {
  /// What a path can name.
  public enum Kind: Hashable, Sendable {
    case regular, directory, symbolicLink, blockDevice, characterDevice, pipe, socket
    /// Something else, or something that was gone when it was looked at.
    case other

    init(mode: mode_t) {
      switch mode & S_IFMT {
      case S_IFREG: self = .regular
      case S_IFDIR: self = .directory
      case S_IFLNK: self = .symbolicLink
      case S_IFBLK: self = .blockDevice
      case S_IFCHR: self = .characterDevice
      case S_IFIFO: self = .pipe
      case S_IFSOCK: self = .socket
      default: self = .other
      }
    }

    /// - Parameter entryType: The `d_type` of an entry; `nil` if it says nothing.
    init?(entryType: UInt8) {
      if entryType == 0 { return nil }
      // DTTOIF.
      self.init(mode: mode_t(entryType) << 12)
    }
  }
}

// MARK: - Beneath

extension AIOFile.Kind {
  /// Whether the library supports requests on files of this kind.
  var isSupported: Bool { self == .regular || self == .blockDevice }

  /// The error for a kind that is not supported, which names it and says what to use instead.
  ///
  /// - Parameter device: The device number of a device node.
  func refusal(_ subject: AIOError.Subject, device: UInt64) -> AIOError {
    let (name, advice) = words(device)
    return AIOError(
      .unsupportedFile, subject,
      .text(
        "\(name); asynchronous file I/O is for regular files and block devices: \(advice)"))
  }

  private func words(_ device: UInt64) -> (name: String, advice: String) {
    let source = "wait for it with AIOContext.makeReadSource(fileDescriptor:) or makeWriteSource"
    switch self {
    case .directory: return ("it is a directory", "open a file in it")
    case .pipe: return ("it is a pipe", source)
    case .socket: return ("it is a socket", source)
    case .symbolicLink:
      return ("it is a symbolic link", "open what it points to, or leave .noFollow out")
    case .characterDevice:
      if Self.isTerminal(device) { return ("it is a terminal", source) }
      return (
        Self.isTape(device) ? "it is a tape" : "it is a character device",
        "use read(2) and write(2) on a thread of your own"
      )
    case .regular, .blockDevice, .other:
      // An eventfd, for one.
      return ("it is neither a file nor a device", source)
    }
  }

  /// Whether the device is a console, a serial line, or either end of a pseudo-terminal, by the
  /// major numbers of Documentation/admin-guide/devices.txt, so that it need not be opened.
  private static func isTerminal(_ device: UInt64) -> Bool {
    [2, 3, 4, 5, 166, 188, 204, 229].contains(major(device))
      || (136...143).contains(major(device))
  }

  private static func isTape(_ device: UInt64) -> Bool { [9, 37, 206].contains(major(device)) }

  /// The major number, as glibc's `gnu_dev_major` takes it from a device number.
  private static func major(_ device: UInt64) -> UInt64 {
    device >> 8 & 0xfff | device >> 32 & ~0xfff
  }
}
