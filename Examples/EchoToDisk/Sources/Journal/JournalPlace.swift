// SPDX-License-Identifier: Apache-2.0

import ServerSupport
import SystemPackage

/// A position in a journal, as messages name it.
enum JournalPlace: CustomStringConvertible {
  case segment(UInt64, offset: Int)
  /// A file of the directory that has no part in the journal, or not under this name.
  case file(String)

  var description: String {
    switch self {
    case .segment(let segment, let offset): "segment \(segment) at offset \(offset)"
    case .file(let name): name.escaped
    }
  }
}

/// The reason why a journal cannot be opened, read or written, in words for the user of a command.
struct JournalError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }

  static func noJournal(in directory: FilePath) -> JournalError {
    JournalError("\(directory): no journal here")
  }
}
