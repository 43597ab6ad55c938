// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// The reason why an operation was refused or failed: a ``code`` to switch on, the facts, and a
/// sentence.
///
/// A refusal is thrown by the call that made the request, before anything was accepted: the
/// completion handler never runs. A failure of an accepted request is the `.failure` of its one
/// completion.
public struct AIOError: Error, Sendable {
  /// The kind of an error, to switch on. The set grows with time, so that a `switch` needs a
  /// `default`.
  public struct Code: Hashable, Sendable, CustomStringConvertible {
    private enum Name: String {
      case cancelled, full, contextClosed, fileClosed, forked
      case invalidOffset, tooLarge, tooManyBuffers, misaligned, wrongAccessMode
      case unsupportedFile, directUnsupported, notSupported
      case invalidOption, contextLimit, descriptorLimit, unavailable
      case noSpace, fileSizeLimit, notFound, exists, permissionDenied, device
      case system
    }

    private let name: Name
    private init(name: Name) { self.name = name }
    /// The name of the code.
    public var description: String { name.rawValue }

    /// The request was cancelled before it reached the kernel, or before the rest of it did: see
    /// ``AIOError/transferred``.
    public static var cancelled: Code { Code(name: .cancelled) }
    /// Every slot of the context (``AIOContext/queueDepth`` + ``AIOContext/pendingLimit``) is
    /// taken, or tasks wait for the next free ones. The same call can succeed once a request's
    /// completion handler has begun. Verbs with `await` wait instead.
    public static var full: Code { Code(name: .full) }
    /// The context has been closed.
    public static var contextClosed: Code { Code(name: .contextClosed) }
    /// The file has been closed.
    public static var fileClosed: Code { Code(name: .fileClosed) }
    /// The process was forked off the one that made the context.
    public static var forked: Code { Code(name: .forked) }
    /// The offset or the count is negative, or the end of the request is past 2^63 - 1.
    public static var invalidOffset: Code { Code(name: .invalidOffset) }
    /// The buffers of a vectored request have more bytes together than an `Int` can express, or a
    /// plug's type of buffer cannot have so many. Any other length is accepted.
    public static var tooLarge: Code { Code(name: .tooLarge) }
    /// A vectored request has more than 1024 buffers.
    public static var tooManyBuffers: Code { Code(name: .tooManyBuffers) }
    /// The offset, a length or a memory address is not a multiple of what the file needs for direct
    /// I/O.
    public static var misaligned: Code { Code(name: .misaligned) }
    /// The file of a read is not open for reading, or that of a write is not open for writing: also
    /// one to be truncated, or opened with `O_PATH`. The socket of a send is blocking.
    public static var wrongAccessMode: Code { Code(name: .wrongAccessMode) }
    /// The file is neither a regular file nor a block device, or is not for this operation: a block
    /// device for an append, what is no stream socket for a send to it, or a regular file or a
    /// directory, which are always ready, for a source or a poll.
    public static var unsupportedFile: Code { Code(name: .unsupportedFile) }
    /// The file system has no direct I/O (`O_DIRECT`).
    public static var directUnsupported: Code { Code(name: .directUnsupported) }
    /// The kernel, the file system or the disk does not have the operation, or the option, for this
    /// file (`EOPNOTSUPP`, `ENOSYS`, `ENOTTY`). Nothing was done.
    public static var notSupported: Code { Code(name: .notSupported) }
    /// An option of the context is outside of its range.
    public static var invalidOption: Code { Code(name: .invalidOption) }
    /// The machine's AIO requests are used up (`fs.aio-max-nr`).
    public static var contextLimit: Code { Code(name: .contextLimit) }
    /// The process or the machine has no more file descriptors (`EMFILE`, `ENFILE`), or the user no
    /// more epoll watches (`fs.epoll.max_user_watches`).
    public static var descriptorLimit: Code { Code(name: .descriptorLimit) }
    /// The kernel has no AIO, or this process may not use it.
    public static var unavailable: Code { Code(name: .unavailable) }
    /// The file system or the quota is full (`ENOSPC`, `EDQUOT`).
    public static var noSpace: Code { Code(name: .noSpace) }
    /// The file would grow past `RLIMIT_FSIZE` or past what its file system can hold (`EFBIG`).
    public static var fileSizeLimit: Code { Code(name: .fileSizeLimit) }
    /// The file does not exist (`ENOENT`).
    public static var notFound: Code { Code(name: .notFound) }
    /// The file exists already (`EEXIST`), or the descriptor has such a source already, or the
    /// socket a send.
    public static var exists: Code { Code(name: .exists) }
    /// The permission was denied (`EACCES`, `EPERM`, `EROFS`).
    public static var permissionDenied: Code { Code(name: .permissionDenied) }
    /// The device failed (`EIO`).
    public static var device: Code { Code(name: .device) }
    /// The kernel gave another answer: see ``AIOError/errno``.
    public static var system: Code { Code(name: .system) }
  }

  /// The operation that was refused or failed. The set grows with time, like ``Code``.
  public struct Operation: Hashable, Sendable, CustomStringConvertible {
    private enum Name: String {
      case createContext = "create context"
      case open, adopt, size, preallocate, truncate
      case punchHole = "punch hole"
      case zeroRange = "zero range"
      case collapseRange = "collapse range"
      case copyRange = "copy range"
      case cloneRange = "clone range"
      case nextData = "next data"
      case nextHole = "next hole"
      case advise, lock, unlock
      case syncDirectory = "sync directory"
      case makeDirectory = "make directory"
      case removeDirectory = "remove directory"
      case rename, unlink, status, list, replace
      case read, write, append, send, fsync, fdatasync, poll
    }

    private let name: Name
    private init(name: Name) { self.name = name }
    /// The name of the operation, as it stands in the sentence.
    public var description: String { name.rawValue }

    /// Making an ``AIOContext``.
    public static var createContext: Operation { Operation(name: .createContext) }
    /// Opening an ``AIOFile``.
    public static var open: Operation { Operation(name: .open) }
    /// Taking ownership of a descriptor, by an `init(adopting:…)`.
    public static var adopt: Operation { Operation(name: .adopt) }
    /// Asking for a file's size.
    public static var size: Operation { Operation(name: .size) }
    /// Allocating room on the disk.
    public static var preallocate: Operation { Operation(name: .preallocate) }
    /// Setting a file's size.
    public static var truncate: Operation { Operation(name: .truncate) }
    /// Freeing the disk space of a range.
    public static var punchHole: Operation { Operation(name: .punchHole) }
    /// Making a range read as zeros.
    public static var zeroRange: Operation { Operation(name: .zeroRange) }
    /// Removing a range from a file.
    public static var collapseRange: Operation { Operation(name: .collapseRange) }
    /// Copying a range to another file.
    public static var copyRange: Operation { Operation(name: .copyRange) }
    /// Sharing the blocks of a range with another file.
    public static var cloneRange: Operation { Operation(name: .cloneRange) }
    /// Looking for the next byte that is not in a hole.
    public static var nextData: Operation { Operation(name: .nextData) }
    /// Looking for the next hole.
    public static var nextHole: Operation { Operation(name: .nextHole) }
    /// Telling the page cache how a range will be used.
    public static var advise: Operation { Operation(name: .advise) }
    /// Taking a lock on a range.
    public static var lock: Operation { Operation(name: .lock) }
    /// Giving back the locks on a range.
    public static var unlock: Operation { Operation(name: .unlock) }
    /// Making the entries of a directory durable.
    public static var syncDirectory: Operation { Operation(name: .syncDirectory) }
    /// Making a directory.
    public static var makeDirectory: Operation { Operation(name: .makeDirectory) }
    /// Removing an empty directory.
    public static var removeDirectory: Operation { Operation(name: .removeDirectory) }
    /// Renaming an entry of a directory.
    public static var rename: Operation { Operation(name: .rename) }
    /// Removing a name of a file.
    public static var unlink: Operation { Operation(name: .unlink) }
    /// Asking for the size, the times and so on of an entry.
    public static var status: Operation { Operation(name: .status) }
    /// Listing a directory.
    public static var list: Operation { Operation(name: .list) }
    /// Replacing a file as a whole.
    public static var replace: Operation { Operation(name: .replace) }
    /// Reading, into one buffer or several.
    public static var read: Operation { Operation(name: .read) }
    /// Writing, from one buffer or several.
    public static var write: Operation { Operation(name: .write) }
    /// Writing at the end of the file.
    public static var append: Operation { Operation(name: .append) }
    /// Sending a file to a socket.
    public static var send: Operation { Operation(name: .send) }
    /// Making data and metadata durable.
    public static var fsync: Operation { Operation(name: .fsync) }
    /// Making data durable.
    public static var fdatasync: Operation { Operation(name: .fdatasync) }
    /// Waiting for a descriptor, or for a timer, with a source or a one-shot poll.
    public static var poll: Operation { Operation(name: .poll) }
  }

  /// The call that the error is about. It is stored apart, so that an error is one reference wide.
  struct Subject: Hashable, Sendable {
    var operation: Operation
    var path: FilePath?
    var descriptor: Int32?
    var offset: Int64?
    var length: Int?
    /// Whether it was a write that was to be durable when it completed.
    var isDurable = false
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

  /// The facts of the sentence, which is composed only when it is read.
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

  /// Makes the error for an errno that the kernel answered.
  init(errno: Int32, _ subject: Subject, transferred: Int = 0) {
    let errno = Errno(rawValue: errno)
    self.init(Code(errno), errno: errno, subject, .errno, transferred: transferred)
  }

  static func cancelled(_ subject: Subject, transferred: Int) -> AIOError {
    AIOError(
      .cancelled, errno: .canceled, subject, .text("cancelled before it reached the kernel"),
      transferred: transferred)
  }

  /// The same error of another call, which this one was a part of.
  func with(_ subject: Subject, transferred: Int) -> AIOError {
    AIOError(code, errno: errno, subject, detail, transferred: transferred)
  }

  /// The kind of the error.
  public var code: Code { storage.code }

  /// The errno that the kernel answered, or would have; `nil` if the library refused what the
  /// kernel has none for.
  public var errno: Errno? { storage.errno }

  /// The operation that was refused or failed.
  public var operation: Operation { storage.subject.operation }

  /// The path of the file, as it was opened; `nil` if there is no file, or an adopted one without a
  /// name.
  public var file: FilePath? { storage.subject.path }

  /// The offset in the file in bytes; `nil` if the operation has none.
  public var offset: Int64? { storage.subject.offset }

  /// The number of bytes that were to be transferred; `nil` if the operation transfers none, or
  /// there were too many buffers to add up.
  public var length: Int? { storage.subject.length }

  /// The number of bytes that a read, a write, a send or a copy had transferred before it failed,
  /// counted from its ``offset``; 0 for everything else. The bytes after those are unspecified.
  public var transferred: Int { storage.transferred }

  var detail: Detail { storage.detail }
  var subject: Subject { storage.subject }
  var descriptor: Int32? { storage.subject.descriptor }
  var isDurable: Bool { storage.subject.isDurable }

  /// Whether the same call can succeed later with nothing else changed, once some request has
  /// completed: `true` for ``Code/full`` only. It is never `true` after a failed sync: see
  /// ``recoverySuggestion``.
  public var isRetryable: Bool { code == .full }
}

extension AIOError.Code {
  /// The code for an errno that the kernel answered.
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
    case .notSupported, .notSupportedOnSocket, .noFunction, .inappropriateIOCTLForDevice:
      self = .notSupported
    default: self = .system
    }
  }
}

extension AIOError: Hashable {
  /// Whether both have the same code, errno, operation, file (its path and the number of its
  /// descriptor, once it has one), offset and length, and are of writes that were both to be
  /// durable, or both not.
  public static func == (a: AIOError, b: AIOError) -> Bool {
    a.code == b.code && a.errno == b.errno && a.storage.subject == b.storage.subject
  }

  /// Hashes what `==` compares.
  public func hash(into hasher: inout Hasher) {
    hasher.combine(code)
    hasher.combine(errno)
    hasher.combine(storage.subject)
  }
}
