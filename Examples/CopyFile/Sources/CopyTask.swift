// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// One copy, from the check of the two names to the link under its own.
struct CopyTask {
  let source: PathArgument
  let destination: PathArgument
  let queueDepth: Int
  let chunk: Int
  let isDurable: Bool
  let verifies: Bool
  let replaces: Bool
  let preserves: Bool

  /// The size that extents begin at multiples of. The alignments of all files divide it.
  private static let block: Int64 = 4096
  /// The largest hole that is read rather than skipped, in a file of many small extents.
  private static let readGap: Int64 = 16 << 10

  /// - Returns: the size of the copy, in bytes.
  func run(_ copy: PendingFile, _ progress: ProgressBar) async throws -> Int64 {
    var from = try open()
    let status = try status(of: from)
    let metadata = try metadata(of: from, status)
    let size = Int64(status.st_size)
    let name = try finalName(status)
    let directory = name.removingLastComponent()
    let parent = directory.isEmpty ? FilePath(".") : directory
    let extents = try extents(of: from, size)
    let areFragments = Extents.areFragments(extents)
    if areFragments { from = try from.buffered() }
    let to: AIOFile
    do {
      to = try copy.create(in: parent, named: name, caching: areFragments ? .buffered : .direct)
    } catch let error as AIOError {
      throw Failure("\(parent.escaped): \(creationWords(error, parent))")
    }
    let count: Int64
    do {
      let context = try makeContext()
      count = try await fill(to, from: from, context, status, extents, progress)
      // What was cut off while it was copied may have been a hole, of which nothing is read.
      guard try self.status(of: from).st_size >= status.st_size else { throw becameShorter }
      try metadata.apply(to: to, named: name)
      if isDurable {
        progress.begin("syncing")
        try await context.fsync(to)
      }
    } catch let error as AIOError where error.code == .noSpace {
      throw Failure(
        "\(name.escaped): no space left on the device for \(ByteCount(Int(size)))")
    } catch let error as AIOError where error.code == .fileSizeLimit {
      throw Failure(
        """
        \(name.escaped): a file of \(ByteCount(Int(size))) passes `ulimit -f` or the filesystem's \
        limit
        """)
    } catch let error as AIOError where error.errno == .noMemory {
      throw Failure(
        """
        not enough memory for up to \(queueDepth) pieces of \(ByteCount(chunk)) at once: choose a \
        smaller --chunk or --queue-depth
        """)
    }
    do {
      try copy.publish(as: name, replacing: replaces)
    } catch let errno as Errno {
      throw errno == .fileExists ? exists(name) : Failure("\(name.escaped): \(errno)")
    }
    if isDurable { try syncDirectory(parent) }
    return count
  }

  private func makeContext() throws(AIOError) -> AIOContext {
    // In containers without kernel AIO, threads do the same.
    var options = AIOContext.Options()
    options.withoutKernelAIO = .threads
    options.minimumQueueDepth = 1
    options.offloadThreads = min(queueDepth, 64)
    return try AIOContext(queueDepth: queueDepth, options: options)
  }

  /// - Returns: the size of the copy.
  private func fill(
    _ to: AIOFile, from: AIOFile, _ context: AIOContext, _ status: stat,
    _ extents: [Range<Int64>], _ progress: ProgressBar
  ) async throws -> Int64 {
    var size = Int64(status.st_size)
    progress.begin("", extents)
    try await to.truncate(to: size)
    // Through the page cache, room is found when it is written out.
    if to.caching == .direct { try preallocate(to, extents) }

    let copier = Copier(
      context, from: from, to: to, chunk: chunk,
      readGap: Extents.areFragments(extents) ? Self.readGap : 0, progress)
    do {
      try await copier.copy(extents)
      // Of an empty file this asks whether it is: many in /proc have bytes, and say 0.
      if size == 0 { size = try await copier.copyToEnd() }
    } catch let error as AIOError where error.operation == .read && size == 0 {
      // No disk is to blame, as the error would say: /proc/self/mem has nothing at 0.
      throw Failure("\(source): \(words(error))")
    } catch is SourceEnded {
      // An attribute in sysfs says 4096, whatever it has.
      guard try self.status(of: from).st_size == status.st_size else { throw becameShorter }
      progress.begin("", [0..<size])
      size = try await copier.copyToEnd()
    }
    try await to.truncate(to: size)

    if verifies {
      // Data where the source has none would be a difference, too.
      let whole = size == status.st_size ? extents : [0..<size]
      let all = try Extents.merged(whole + self.extents(of: to, size))
      progress.begin("verifying ", all)
      do {
        try await copier.compare(all)
      } catch is SourceEnded {
        throw becameShorter
      }
    }
    return size
  }

  // MARK: The source

  private func open() throws -> AIOFile {
    let file: AIOFile
    do {
      file = try AIOFile.openDirectIfPossible(source.path)
    } catch {
      throw Failure("\(source): \(words(error))")
    }
    // What is no directory was not opened, if it is none.
    guard !source.endsWithSlash else { throw Failure("\(source): \(Errno.notDirectory)") }
    return file
  }

  private func status(of file: AIOFile) throws -> stat {
    var status = stat()
    guard fstat(file.fileDescriptor.rawValue, &status) == 0 else {
      throw Failure("\(source): \(Errno(rawValue: errno))")
    }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw Failure("\(source): not a regular file, and only those are copied")
    }
    return status
  }

  private func metadata(of file: AIOFile, _ status: stat) throws -> Metadata {
    do {
      return try Metadata(of: file, status, preserves: preserves)
    } catch {
      throw Failure("\(source): reading its permissions and attributes: \(error)")
    }
  }

  private var becameShorter: Failure { Failure("\(source) became shorter while it was copied") }

  private func extents(of file: AIOFile, _ size: Int64) throws -> [Range<Int64>] {
    do {
      return try Extents.data(of: file.fileDescriptor, size: size, alignment: Self.block)
    } catch {
      throw Failure("\(file.path?.escaped ?? ""): looking for holes: \(error)")
    }
  }

  // MARK: The destination

  /// The final name of the copy, which does not exist or may be replaced.
  private func finalName(_ source: stat) throws -> FilePath {
    var name = destination.path
    if let status = Self.fileStatus(name, follows: true), status.st_mode & S_IFMT == S_IFDIR {
      guard let last = self.source.path.lastComponent else {
        throw Failure("\(self.source): a name is needed for the copy in \(destination)")
      }
      name.append(last)
    } else if destination.endsWithSlash {
      let isThere = Self.fileStatus(name, follows: true) != nil
      throw Failure("\(destination): \(isThere ? "not a" : "no such") directory")
    }
    guard let status = Self.fileStatus(name, follows: false) else { return name }
    if let target = Self.fileStatus(name, follows: true),
      target.st_dev == source.st_dev, target.st_ino == source.st_ino
    {
      throw Failure("\(self.source) and \(name.escaped) are the same file")
    }
    switch status.st_mode & S_IFMT {
    case S_IFREG, S_IFLNK: break
    case S_IFDIR: throw Failure("\(name.escaped) is a directory, and is not replaced")
    default: throw Failure("\(name.escaped) is not a regular file, and is not replaced")
    }
    guard replaces else { throw exists(name) }
    let parent = name.removingLastComponent()
    guard !(parent.isEmpty ? FilePath(".") : parent).isAppendOnly else {
      throw Failure(
        "\(name.escaped) cannot be replaced: its directory is append-only (chattr +a)")
    }
    return name
  }

  private static func fileStatus(_ path: FilePath, follows: Bool) -> stat? {
    var status = stat()
    let flags = follows ? 0 : AT_SYMLINK_NOFOLLOW
    return path.withPlatformString { fstatat(AT_FDCWD, $0, &status, flags) } == 0 ? status : nil
  }

  /// Reserves the room for the extents, so that no write has to.
  private func preallocate(_ file: AIOFile, _ extents: [Range<Int64>]) throws(AIOError) {
    for extent in extents {
      do {
        try file.preallocate(extent)
      } catch  where error.errno == .notSupported || error.errno == .noFunction {
        return
      }
    }
  }

  private func syncDirectory(_ path: FilePath) throws {
    let descriptor = path.withPlatformString {
      Glibc.open($0, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    }
    guard descriptor >= 0 else { throw Failure("\(path.escaped): \(Errno(rawValue: errno))") }
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

  /// Of a file that could not be made in a directory.
  private func creationWords(_ error: AIOError, _ directory: FilePath) -> String {
    let status = Self.fileStatus(directory, follows: true)
    // As in /proc: the directory is not what there is none of.
    guard error.errno == .noSuchFileOrDirectory, (status?.st_mode ?? 0) & S_IFMT == S_IFDIR
    else { return words(error) }
    return "its filesystem lets nobody make files there"
  }

  private func exists(_ name: FilePath) -> Failure {
    Failure("\(name.escaped) exists; --force replaces it")
  }
}
