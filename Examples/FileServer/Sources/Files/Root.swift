// SPDX-License-Identifier: Apache-2.0
//
// The directory that is served, and how a path in it becomes an open file. Whatever a path says,
// the kernel does not leave the directory: RESOLVE_BENEATH follows symbolic links that stay inside,
// and refuses the others.

import CServedFiles
import Glibc
import ServerSupport
import SystemPackage

/// How files are read.
enum Caching: String, CaseIterable, Sendable {
  case automatic, buffered, direct
}

/// What a request's path turned out to be.
enum Resolution {
  case file(ServedFile)
  /// A directory, which a slash has to follow.
  case directoryWithoutSlash
  /// A page that lists a directory.
  case listing([UInt8])
  /// An errno.
  case failed(Int32)
  /// It cannot be told without waiting.
  case wouldBlock
}

final class Root: Sendable {
  let descriptor: Int32
  private let isLocal: Bool
  private let isDirect: Bool
  private let isAutomatic: Bool
  private let lists: Bool
  private let isPrecompressed: Bool

  init(
    _ path: FilePath, caching: Caching, lists: Bool, isPrecompressed: Bool
  ) throws(Failure) {
    let descriptor = path.withPlatformString {
      Glibc.open($0, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    }
    guard descriptor >= 0 else {
      let reason = String(cString: strerror(errno))
      throw Failure("\(path.escaped): \(reason); name a directory to serve")
    }
    self.descriptor = descriptor
    isLocal = cfiles_is_local(descriptor) != 0
    (isDirect, isAutomatic) = (caching == .direct, caching == .automatic)
    (self.lists, self.isPrecompressed) = (lists, isPrecompressed)
  }

  deinit { Glibc.close(descriptor) }

  /// What a path is.
  ///
  /// - Parameters:
  ///   - codings: in which the client takes a file that is beside.
  ///   - mayWait: whether the caller may sleep in a disk. If not, the answer may be `.wouldBlock`.
  func resolve(
    _ path: TargetPath, codings: [ContentCoding], mayWait: Bool
  ) -> Resolution {
    guard mayWait || isLocal else { return .wouldBlock }
    if path.isDirectory {
      var index = path.bytes
      index.removeLast()
      index.append(contentsOf: "/index.html\0".utf8)
      switch open(index, codings, mayWait) {
      case .failed(ENOENT): return list(path.bytes, mayWait)
      case .directoryWithoutSlash: return .failed(ENOENT)
      case let other: return other
      }
    }
    return open(path.bytes, codings, mayWait)
  }

  private func open(
    _ path: [UInt8], _ codings: [ContentCoding], _ mayWait: Bool
  ) -> Resolution {
    let type = path.withUnsafeBytes { MediaType.of(path: $0) }
    let varies = isPrecompressed && type.isCompressible
    if varies {
      for coding in codings {
        var compressed = path
        compressed.removeLast()
        compressed.append(
          contentsOf: Bytes(start: coding.suffix.utf8Start, count: coding.suffix.utf8CodeUnitCount))
        compressed.append(0)
        switch open(compressed, type, coding, varies, mayWait) {
        // It is beside a file, and no substitute for one.
        case .file(let file):
          if case .file = open(path, type, nil, varies, mayWait) { return .file(file) }
        case .wouldBlock: return .wouldBlock
        default: break
        }
      }
    }
    return open(path, type, nil, varies, mayWait)
  }

  private func open(
    _ path: [UInt8], _ type: MediaType, _ coding: ContentCoding?, _ varies: Bool, _ mayWait: Bool
  ) -> Resolution {
    var isDirect = isDirect
    var descriptor = path.withUnsafeBytes { openFile($0, mayWait, isDirect) }
    if isDirect && descriptor == -EINVAL {
      // A file system without O_DIRECT, or a directory.
      isDirect = false
      descriptor = path.withUnsafeBytes { openFile($0, mayWait, isDirect) }
    }
    // EXDEV: another mount, or outside; only the whole look-up can tell.
    if !mayWait, descriptor == -EAGAIN || descriptor == -EXDEV { return .wouldBlock }
    guard descriptor >= 0 else { return .failed(-descriptor) }
    var status = cfiles_status()
    let answer = cfiles_status(descriptor, &status)
    guard answer == 0, mode_t(status.type) == S_IFREG else {
      Glibc.close(descriptor)
      if answer < 0 { return .failed(-answer) }
      // Nobody waits for a pipe's other end.
      return mode_t(status.type) == S_IFDIR ? .directoryWithoutSlash : .failed(ENOENT)
    }
    return .file(
      ServedFile(
        descriptor, status, type: type, coding: coding, varies: varies, isDirect: isDirect,
        isAutomatic: isAutomatic))
  }

  private func openFile(_ path: Bytes, _ mayWait: Bool, _ isDirect: Bool) -> Int32 {
    // The path ends with a zero byte, so that it has an address.
    let name = path.bindMemory(to: CChar.self).baseAddress!
    let flags = isDirect ? cfiles_direct : 0
    guard mayWait else { return cfiles_open(descriptor, name, flags, 1) }
    // One that may wait looks first, so that nothing happens to a device, and then waits for the
    // holder of a lease.
    let place = cfiles_open(descriptor, name, cfiles_path, 0)
    guard place >= 0 else { return place }
    defer { Glibc.close(place) }
    var status = cfiles_status()
    let answer = cfiles_status(place, &status)
    guard answer == 0 else { return answer }
    let type = mode_t(status.type)
    guard type == S_IFREG || type == S_IFDIR else { return -ENOENT }
    return cfiles_reopen(place, type == S_IFREG ? flags : 0)
  }

  private func list(_ path: [UInt8], _ mayWait: Bool) -> Resolution {
    guard mayWait else { return .wouldBlock }
    let place = path.withUnsafeBytes {
      cfiles_open_place(descriptor, $0.bindMemory(to: CChar.self).baseAddress!)  // As above.
    }
    guard place >= 0 else { return .failed(-place) }
    defer { Glibc.close(place) }
    guard lists else { return .failed(EACCES) }
    let directory = cfiles_reopen(place, O_RDONLY | O_DIRECTORY)
    guard directory >= 0 else { return .failed(-directory) }
    return .listing(Listing.page(of: directory, path: path.dropLast()))
  }
}
