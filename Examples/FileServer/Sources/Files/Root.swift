// SPDX-License-Identifier: Apache-2.0
//
// The directory that is served, and how a path in it becomes an open file. Whatever a path says,
// the kernel does not leave the directory: RESOLVE_BENEATH follows symbolic links that stay inside,
// and refuses the others.

import CServedFiles
import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// How files are read.
enum Caching: String, CaseIterable, Sendable {
  case automatic, buffered, direct

  var ofFiles: AIOFile.Caching {
    switch self {
    case .automatic: .automatic
    case .buffered: .buffered
    case .direct: .direct
    }
  }
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
  let directory: AIODirectory
  private let caching: AIOFile.Caching
  /// One for each name, by its hash: see `replacing`. A power of two.
  private let locks = (0..<64).map { _ in Lock(()) }
  private let lists: Bool
  private let isPrecompressed: Bool

  init(
    _ path: FilePath, caching: Caching, lists: Bool, isPrecompressed: Bool
  ) throws(Failure) {
    do {
      directory = try AIODirectory.open(path)
    } catch {
      let reason = error.errno.map { "\($0)" } ?? "\(error)"
      throw Failure("\(path.escaped): \(reason); name a directory to serve")
    }
    self.caching = caching.ofFiles
    (self.lists, self.isPrecompressed) = (lists, isPrecompressed)
  }

  var descriptor: Int32 { directory.fileDescriptor.rawValue }

  /// What an upload holds while it looks at what it replaces, and replaces it, so that no other
  /// does in between; the disk may work meanwhile.
  ///
  /// - Parameter name: The path's last, which is the same whatever links lead to its directory.
  func replacing(_ name: FilePath.Component) -> Lock<Void> {
    locks[name.hashValue & (locks.count - 1)]
  }

  /// What a path is.
  ///
  /// - Parameters:
  ///   - codings: in which the client takes a file that is beside.
  ///   - mayWait: whether the caller may sleep in a disk. If not, the answer may be `.wouldBlock`.
  func resolve(
    _ path: TargetPath, codings: [ContentCoding], mayWait: Bool
  ) -> Resolution {
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
        // It is beside a file, and no substitute for one; nor for one that was written since.
        case .file(let file):
          if case .file(let plain) = open(path, type, nil, varies, mayWait),
            !file.isOlder(than: plain)
          {
            return .file(file)
          }
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
    // The path ends with a zero byte, so that it has an address.
    let name = path.withUnsafeBytes {
      FilePath(platformString: $0.bindMemory(to: CChar.self).baseAddress!)
    }
    do throws(AIOError) {
      guard let file = try openFile(name, mayWait) else { return .wouldBlock }
      guard !file.isAmongLastDescriptors else { return .failed(EMFILE) }
      return .file(ServedFile(file, type: type, coding: coding, varies: varies))
    } catch {
      // Nobody waits for a pipe's other end.
      guard error.code == .unsupportedFile else { return .failed(error.errno?.rawValue ?? EIO) }
      return isDirectory(path) ? .directoryWithoutSlash : .failed(ENOENT)
    }
  }

  /// - Returns: `nil` if it cannot be told without waiting.
  private func openFile(_ name: FilePath, _ mayWait: Bool) throws(AIOError) -> AIOFile? {
    guard mayWait else {
      return try AIOFile.openNow(name, .readOnly, beneath: directory, caching: caching)
    }
    do throws(AIOError) {
      return try AIOFile.open(name, .readOnly, beneath: directory, caching: caching)
    } catch {
      guard error.code == .directUnsupported else { throw error }
      return try AIOFile.open(name, .readOnly, beneath: directory, caching: .buffered)
    }
  }

  private func isDirectory(_ path: [UInt8]) -> Bool {
    let place = path.withUnsafeBytes {
      cserved_open_place(descriptor, $0.bindMemory(to: CChar.self).baseAddress!)  // As above.
    }
    if place >= 0 { Glibc.close(place) }
    return place >= 0
  }

  private func list(_ path: [UInt8], _ mayWait: Bool) -> Resolution {
    guard mayWait else { return .wouldBlock }
    let place = path.withUnsafeBytes {
      cserved_open_place(descriptor, $0.bindMemory(to: CChar.self).baseAddress!)  // As above.
    }
    guard place >= 0 else { return .failed(-place) }
    defer { Glibc.close(place) }
    guard lists else { return .failed(EACCES) }
    let directory = cserved_reopen(place, O_RDONLY | O_DIRECTORY)
    guard directory >= 0 else { return .failed(-directory) }
    return .listing(Listing.page(of: directory, path: path.dropLast(), beneath: descriptor))
  }
}
