// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import PlatformLibc
internal import Synchronization
public import SystemPackage

/// A directory beneath which files are opened: whatever a path says, the kernel does not leave the
/// directory. It follows symbolic links that stay inside, and refuses the others, `..` that leads
/// out, absolute paths, and the links of `/proc`.
///
/// ```swift
/// let root = try AIODirectory.open("/srv/www")
/// let file = try await AIOFile.open("images/logo.png", .readOnly, beneath: root)
/// ```
///
/// Corresponds to the directory descriptor of `openat2(2)` with `RESOLVE_BENEATH`, which Linux has
/// from 5.6 on.
public final class AIODirectory: Sendable {
  private static let numbers = Atomic<UInt64>(0)

  let descriptor: Int32
  /// A number that no other directory has had; not 0.
  let number: UInt64
  let device: UInt64
  /// What is known of the directory's own mount.
  let mount: Mounts.Facts

  /// The directory's path, as it was opened or adopted.
  public let path: FilePath?

  /// Opens a directory. Corresponds to `open(2)` with `O_PATH`, `O_DIRECTORY` and `O_CLOEXEC`.
  /// Blocks the calling thread.
  ///
  /// - Parameter path: The directory's path, which may be a symbolic link.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/notFound``,
  ///   ``AIOError/Code/permissionDenied``, ``AIOError/Code/descriptorLimit``, or
  ///   ``AIOError/Code/system``, as for what is no directory (`ENOTDIR`).
  public static func open(_ path: FilePath) throws(AIOError) -> AIODirectory {
    let answer = FileOpening.open(path, ckernel_o_path | O_DIRECTORY | O_CLOEXEC)
    let subject = AIOError.Subject(operation: .open, path: path)
    guard answer >= 0 else { throw AIOError(errno: -answer, subject) }
    do {
      return try AIODirectory(FileDescriptor(rawValue: answer), path: path, subject)
    } catch {
      PlatformLibc.close(answer)
      throw error
    }
  }

  /// Takes ownership of an open descriptor of a directory, which is closed with the last reference.
  /// Blocks the calling thread.
  ///
  /// - Parameters:
  ///   - descriptor: A descriptor of a directory, which may have been opened with `O_PATH`.
  ///   - path: A name; `nil` if it has none.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/system``, as for what is no directory
  ///   (`ENOTDIR`); the descriptor then stays the caller's.
  public convenience init(
    adopting descriptor: FileDescriptor, path: FilePath? = nil
  ) throws(AIOError) {
    try self.init(
      descriptor, path: path,
      AIOError.Subject(operation: .adopt, path: path, descriptor: descriptor.rawValue))
  }

  private init(
    _ descriptor: FileDescriptor, path: FilePath?, _ subject: AIOError.Subject
  ) throws(AIOError) {
    let status = try ckernel_status(of: descriptor.rawValue, subject)
    guard status.mode & S_IFMT == S_IFDIR else { throw AIOError(errno: ENOTDIR, subject) }
    mount = Mounts.facts(descriptor.rawValue, status, isWritable: false)
    self.descriptor = descriptor.rawValue
    self.path = path
    device = status.device
    number = Self.numbers.add(1, ordering: .relaxed).newValue
  }

  deinit {
    let descriptor = descriptor
    BlockingCalls.run(on: device) { PlatformLibc.close(descriptor) }
  }

  /// The descriptor, for calls that this library does not have, as `fstatat(2)`. The directory owns
  /// it: it must not be closed.
  public var fileDescriptor: FileDescriptor { FileDescriptor(rawValue: descriptor) }
}
