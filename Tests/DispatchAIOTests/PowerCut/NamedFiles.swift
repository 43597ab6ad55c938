// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage

/// Files that are replaced as a whole: after a power failure a name has the contents that were
/// promised last, or later ones, and all of them. May be used from any thread.
final class NamedFiles: Sendable {
  /// What a name got, by its number among the contents of that name.
  private struct Version {
    var name: String
    var number: Int
  }

  private let durable: Acknowledgements<Version>
  /// What each name got, one after the other.
  private let contents = Locked<[String: [ArraySlice<UInt8>]]>([:])

  init(_ disk: PowerCutDisk) { durable = Acknowledgements(disk) }

  /// Gives a name other contents by what `body` does, which returns when they are durable.
  ///
  /// - Parameter body: its argument: whether there may be a file of that name.
  func replace(_ name: String, by bytes: ArraySlice<UInt8>, _ body: (Bool) throws -> Void) rethrows
  {
    let number = contents.withLock {
      $0[name, default: []].append(bytes)
      return ($0[name]?.count ?? 0) - 1
    }
    try body(number > 0)
    durable.record(Version(name: name, number: number))
  }

  /// What of them is not in the directory.
  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    let promised = durable.promised(at: cut.position)
    return try contents.withLock { $0 }.compactMap { name, contents in
      let oldest = promised.filter { $0.name == name }.map(\.number).max()
      let file = path.appending(name).string
      guard access(file, F_OK) == 0 else {
        return oldest == nil ? nil : "\(name) is not there"
      }
      let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
      return contents[(oldest ?? 0)...].contains { bytes[...].isSame(as: $0) }
        ? nil : "\(name) has \(bytes.count) bytes, which are not what it got last"
    }
  }
}
