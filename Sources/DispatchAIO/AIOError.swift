// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// Why an operation was refused or failed: a ``code`` to switch on, the facts, and a sentence.
///
/// A refusal is thrown by the call that made the request, before anything was accepted: its
/// completion handler never runs. A failure of an accepted request is the `.failure` of its one
/// completion.
public struct AIOError: Error, Sendable {
  /// What went wrong, to switch on. The set grows with time: keep a `default`.
  public struct Code: Hashable, Sendable, CustomStringConvertible {
    private enum Name: String {
      case cancelled, full, contextClosed, fileClosed, forked
      case invalidOffset, tooLarge, tooManyBuffers, misaligned, wrongAccessMode
      case unsupportedFile, directUnsupported
      case invalidOption, contextLimit, descriptorLimit, unavailable
      case noSpace, fileSizeLimit, notFound, exists, permissionDenied, device
      case system
    }

    private let name: Name
    private init(name: Name) { self.name = name }
    public var description: String { name.rawValue }

    /// The request was cancelled before it reached the kernel.
    public static var cancelled: Code { Code(name: .cancelled) }
    /// As many requests wait as the context was made for. Try again when one has completed.
    public static var full: Code { Code(name: .full) }
    /// The context has been closed.
    public static var contextClosed: Code { Code(name: .contextClosed) }
    /// The file has been closed.
    public static var fileClosed: Code { Code(name: .fileClosed) }
    /// The process was forked off the one that made the context.
    public static var forked: Code { Code(name: .forked) }
    /// A negative offset, or one so large that the end of the request has no number.
    public static var invalidOffset: Code { Code(name: .invalidOffset) }
    /// More bytes than one request can move (0x7ffff000).
    public static var tooLarge: Code { Code(name: .tooLarge) }
    /// More than 1024 buffers in a vectored request.
    public static var tooManyBuffers: Code { Code(name: .tooManyBuffers) }
    /// Offset, length or memory is no multiple of what the file needs for direct I/O.
    public static var misaligned: Code { Code(name: .misaligned) }
    /// A read from a file that is not open for reading, or a write to one not open for writing.
    public static var wrongAccessMode: Code { Code(name: .wrongAccessMode) }
    /// Neither a regular file nor a block device.
    public static var unsupportedFile: Code { Code(name: .unsupportedFile) }
    /// The filesystem has no direct I/O (`O_DIRECT`).
    public static var directUnsupported: Code { Code(name: .directUnsupported) }
    /// An option of the context outside of its range.
    public static var invalidOption: Code { Code(name: .invalidOption) }
    /// The machine's AIO contexts are used up (`fs.aio-max-nr`).
    public static var contextLimit: Code { Code(name: .contextLimit) }
    /// The process or the machine has no more file descriptors (`EMFILE`, `ENFILE`), or the user no
    /// more epoll watches (`fs.epoll.max_user_watches`).
    public static var descriptorLimit: Code { Code(name: .descriptorLimit) }
    /// The kernel has no AIO, or this process may not use it.
    public static var unavailable: Code { Code(name: .unavailable) }
    /// The filesystem or the quota is full (`ENOSPC`, `EDQUOT`).
    public static var noSpace: Code { Code(name: .noSpace) }
    /// The file would grow past `RLIMIT_FSIZE` or past what its filesystem can hold (`EFBIG`).
    public static var fileSizeLimit: Code { Code(name: .fileSizeLimit) }
    /// There is no such file (`ENOENT`).
    public static var notFound: Code { Code(name: .notFound) }
    /// The file exists already (`EEXIST`).
    public static var exists: Code { Code(name: .exists) }
    /// Permission denied (`EACCES`, `EPERM`, `EROFS`).
    public static var permissionDenied: Code { Code(name: .permissionDenied) }
    /// The device failed (`EIO`).
    public static var device: Code { Code(name: .device) }
    /// Any other answer of the kernel: see ``AIOError/errno``.
    public static var system: Code { Code(name: .system) }
  }

  /// What was tried. The set grows with time, like ``Code``.
  public struct Operation: Hashable, Sendable, CustomStringConvertible {
    private enum Name: String {
      case createContext = "create context"
      case open, adopt, size, preallocate, truncate
      case read, write, fsync, fdatasync, poll
    }

    private let name: Name
    private init(name: Name) { self.name = name }
    public var description: String { name.rawValue }

    public static var createContext: Operation { Operation(name: .createContext) }
    public static var open: Operation { Operation(name: .open) }
    public static var adopt: Operation { Operation(name: .adopt) }
    public static var size: Operation { Operation(name: .size) }
    public static var preallocate: Operation { Operation(name: .preallocate) }
    public static var truncate: Operation { Operation(name: .truncate) }
    public static var read: Operation { Operation(name: .read) }
    public static var write: Operation { Operation(name: .write) }
    public static var fsync: Operation { Operation(name: .fsync) }
    public static var fdatasync: Operation { Operation(name: .fdatasync) }
    public static var poll: Operation { Operation(name: .poll) }
  }

  /// What the error is about. Kept apart from the error so that an error is one reference wide.
  struct Subject: Hashable, Sendable {
    var operation: Operation
    var path: FilePath?
    var descriptor: Int32?
    var offset: Int64?
    var length: Int?
  }

  private final class Storage: Sendable {
    let code: Code
    let errno: Errno?
    let subject: Subject
    let detail: Detail
    let transferred: Int

    init(code: Code, errno: Errno?, subject: Subject, detail: Detail, transferred: Int) {
      self.code = code
      self.errno = errno
      self.subject = subject
      self.detail = detail
      self.transferred = transferred
    }
  }

  /// The sentence, put into words only when somebody reads it.
  enum Detail: Sendable {
    /// The errno's own words and, where the library knows one, a recovery suggestion.
    case errno
    case text(String)
    case misaligned(String, needed: Int)
    case full(limit: Int)
    case contextLimit(asked: Int, inUse: Int?, maximum: Int?)
  }

  private let storage: Storage

  init(
    _ code: Code, errno: Errno? = nil, _ subject: Subject, _ detail: Detail, transferred: Int = 0
  ) {
    storage = Storage(
      code: code, errno: errno, subject: subject, detail: detail, transferred: transferred)
  }

  /// An answer of the kernel's.
  init(errno: Int32, _ subject: Subject, transferred: Int = 0) {
    let errno = Errno(rawValue: errno)
    self.init(Code(errno), errno: errno, subject, .errno, transferred: transferred)
  }

  static func cancelled(_ subject: Subject, transferred: Int) -> AIOError {
    AIOError(
      .cancelled, errno: .canceled, subject, .text("cancelled before it reached the kernel"),
      transferred: transferred)
  }

  /// What went wrong.
  public var code: Code { storage.code }

  /// The kernel's answer; `nil` where the library refused by itself.
  public var errno: Errno? { storage.errno }

  /// What was tried.
  public var operation: Operation { storage.subject.operation }

  /// The file, as it was opened; `nil` where there is none, or an adopted one without a name.
  public var file: FilePath? { storage.subject.path }

  /// Where in the file, in bytes.
  public var offset: Int64? { storage.subject.offset }

  /// How many bytes were to be moved.
  public var length: Int? { storage.subject.length }

  /// How many bytes had been moved before the error came: for ``AIOContext`` verbs that finish short
  /// transfers; else 0.
  public var transferred: Int { storage.transferred }

  var detail: Detail { storage.detail }
  var descriptor: Int32? { storage.subject.descriptor }

  /// Whether the same call can succeed later, when some request has completed, with nothing else
  /// changed. Never after a failed sync: see ``recoverySuggestion``.
  public var isRetryable: Bool { code == .full }
}

extension AIOError.Code {
  /// The code of a kernel's answer.
  init(_ errno: Errno) {
    switch errno {
    case .noSpace, .diskQuotaExceeded: self = .noSpace
    case .fileTooLarge: self = .fileSizeLimit
    case .noSuchFileOrDirectory: self = .notFound
    case .fileExists: self = .exists
    case .permissionDenied, .notPermitted, .readOnlyFileSystem: self = .permissionDenied
    case .ioError: self = .device
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem: self = .descriptorLimit
    case .canceled: self = .cancelled
    default: self = .system
    }
  }
}

extension AIOError: Hashable {
  /// Whether both say the same of the same: code, errno, operation, file, offset and length.
  public static func == (a: AIOError, b: AIOError) -> Bool {
    a.code == b.code && a.errno == b.errno && a.storage.subject == b.storage.subject
  }

  public func hash(into hasher: inout Hasher) {
    hasher.combine(code)
    hasher.combine(storage.subject)
  }
}
