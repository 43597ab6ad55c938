// SPDX-License-Identifier: Apache-2.0

/// A position in a journal, as messages name it.
struct JournalPlace: CustomStringConvertible {
  let segment: UInt64
  let offset: Int
  var description: String { "segment \(segment) at offset \(offset)" }
}

/// The reason why a journal cannot be opened, read or written, in words for the user of a command.
struct JournalError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}
