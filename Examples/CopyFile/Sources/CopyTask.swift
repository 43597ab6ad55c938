// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// One copy, from the check of the two names to the rename.
struct CopyTask {
  let source: FilePath
  let destination: FilePath
  /// Whether the destination was given with a slash at its end, which a `FilePath` drops.
  let isToBeDirectory: Bool
  let queueDepth: Int
  let chunk: Int
  let isDurable: Bool
  let verifies: Bool
  let replaces: Bool

  /// The size that extents begin at multiples of. The alignments of all files divide it.
  private static let block: Int64 = 4096

  /// - Returns: the size of the copy, in bytes.
  func run(_ copy: PendingFile, _ progress: ProgressBar) async throws -> Int64 {
    let from = try open()
    let status = try status(of: from)
    let size = Int64(status.st_size)
    let name = try finalName(status)
    let directory = name.removingLastComponent()
    let parent = directory.isEmpty ? FilePath(".") : directory
    let to: AIOFile
    do {
      to = try copy.create(in: parent)
    } catch let error as AIOError {
      throw Failure("\(parent): \(words(error))")
    }
    do {
      try await fill(to, from: from, status, progress)
    } catch let error as AIOError where error.code == .noSpace {
      throw Failure("\(name): no space left on the device for \(ByteCount(Int(size)))")
    } catch let error as AIOError where error.code == .fileSizeLimit {
      throw Failure(
        "\(name): a file of \(ByteCount(Int(size))) passes `ulimit -f` or the filesystem's limit")
    }
    do {
      try copy.publish(as: name, replacing: replaces)
    } catch {
      throw error == .fileExists ? exists(name) : Failure("\(name): \(error)")
    }
    if isDurable { try syncDirectory(parent) }
    return size
  }

  private func fill(
    _ to: AIOFile, from: AIOFile, _ status: stat, _ progress: ProgressBar
  ) async throws {
    let size = Int64(status.st_size)
    let extents = try extents(of: from, size)
    progress.begin("", extents)
    try await to.truncate(to: size)
    try preallocate(to, extents)

    // In containers without kernel AIO, threads do the same.
    var options = AIOContext.Options()
    options.withoutKernelAIO = .threads
    options.minimumQueueDepth = 1
    options.offloadThreads = min(queueDepth, 64)
    let context = try AIOContext(queueDepth: queueDepth, options: options)
    let copier = Copier(context, from: from, to: to, chunk: chunk, progress)
    try await copier.copy(extents)
    try await to.truncate(to: size)

    if verifies {
      // Data where the source has none would be a difference, too.
      let all = try Extents.merged(extents + self.extents(of: to, size))
      progress.begin("verifying ", all)
      try await copier.compare(all)
    }
    try setMode(of: to, as: status)
    if isDurable { try await context.fsync(to) }
  }

  // MARK: The source

  private func open() throws -> AIOFile {
    do {
      return try AIOFile.openDirectIfPossible(source, .readOnly)
    } catch {
      throw Failure("\(source): \(words(error))")
    }
  }

  private func status(of file: AIOFile) throws -> stat {
    var status = stat()
    guard fstat(file.fileDescriptor.rawValue, &status) == 0 else {
      throw Failure("\(source): \(Errno(rawValue: errno))")
    }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw Failure("\(source): not a regular file, and only those are copied")
    }
    var byte: UInt8 = 0
    if status.st_size == 0, pread(file.fileDescriptor.rawValue, &byte, 1, 0) == 1 {
      throw Failure("\(source): does not tell its size, like files in /proc; `cat` copies it")
    }
    return status
  }

  private func extents(of file: AIOFile, _ size: Int64) throws -> [Range<Int64>] {
    do {
      return try Extents.data(of: file.fileDescriptor, size: size, alignment: Self.block)
    } catch {
      throw Failure("\(file.path ?? ""): looking for holes: \(error)")
    }
  }

  // MARK: The destination

  /// The final name of the copy, which does not exist or may be replaced.
  private func finalName(_ source: stat) throws -> FilePath {
    var name = destination
    var status = stat()
    if stat(name.string, &status) == 0, status.st_mode & S_IFMT == S_IFDIR {
      guard let last = self.source.lastComponent else {
        throw Failure("\(self.source): a name is needed for the copy in \(destination)")
      }
      name.append(last)
    } else if isToBeDirectory {
      throw Failure("\(destination): no such directory")
    }
    guard lstat(name.string, &status) == 0 else { return name }
    var target = stat()
    if stat(name.string, &target) == 0,
      target.st_dev == source.st_dev, target.st_ino == source.st_ino
    {
      throw Failure("\(self.source) and \(name) are the same file")
    }
    switch status.st_mode & S_IFMT {
    case S_IFREG, S_IFLNK: break
    case S_IFDIR: throw Failure("\(name) is a directory, and is not replaced")
    default: throw Failure("\(name) is not a regular file, and is not replaced")
    }
    guard replaces else { throw exists(name) }
    return name
  }

  /// Reserves the room for the extents, so that no write has to.
  private func preallocate(_ file: AIOFile, _ extents: [Range<Int64>]) throws(AIOError) {
    for extent in extents {
      let end = Int64(file.alignment.roundUp(Int(extent.upperBound)))
      do {
        try file.preallocate(extent.lowerBound..<end)
      } catch  where error.errno == .notSupported || error.errno == .noFunction {
        return
      }
    }
  }

  /// Copies the permissions; set-user-ID and set-group-ID only if the owner is the same.
  private func setMode(of file: AIOFile, as source: stat) throws {
    let descriptor = file.fileDescriptor.rawValue
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
      throw Failure("\(destination): \(Errno(rawValue: errno))")
    }
    let isSameOwner = status.st_uid == source.st_uid && status.st_gid == source.st_gid
    guard fchmod(descriptor, source.st_mode & (isSameOwner ? 0o7777 : 0o1777)) == 0 else {
      throw Failure("\(destination): cannot set its permissions: \(Errno(rawValue: errno))")
    }
  }

  private func syncDirectory(_ path: FilePath) throws {
    let descriptor = Glibc.open(path.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw Failure("\(path): \(Errno(rawValue: errno))") }
    defer { close(descriptor) }
    // EINVAL: a filesystem whose directories need none.
    guard Glibc.fsync(descriptor) == 0 || errno == EINVAL else {
      throw Failure(
        "the copy is complete, but its name may not be durable: \(Errno(rawValue: errno))")
    }
  }

  // MARK: Words

  private func words(_ error: AIOError) -> String {
    switch error.errno {
    case .some(let errno): "\(errno)"
    case nil where error.code == .unsupportedFile:
      "not a regular file, and only those are copied"
    case nil: error.description
    }
  }

  private func exists(_ name: FilePath) -> Failure {
    Failure("\(name) exists; --force replaces it")
  }
}
