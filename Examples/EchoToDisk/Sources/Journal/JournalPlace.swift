// SPDX-License-Identifier: Apache-2.0

/// A position in a journal, as messages name it.
enum JournalPlace: CustomStringConvertible {
  case segment(UInt64, offset: Int)
  /// A file of the directory that has no part in the journal, or not under this name.
  case file(String)

  var description: String {
    switch self {
    case .segment(let segment, let offset): "segment \(segment) at offset \(offset)"
    case .file(let name): escaped(name)
    }
  }
}

/// The reason why a journal cannot be opened, read or written, in words for the user of a command.
struct JournalError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// A text that somebody else chose, with everything escaped that a terminal would act on.
func escaped(_ text: String) -> String {
  var result = ""
  for scalar in text.unicodeScalars {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse,
      .unassigned:
      result += "\\u{\(String(scalar.value, radix: 16))}"
    default:
      if scalar == "\\" { result += "\\" }
      result.unicodeScalars.append(scalar)
    }
  }
  return result
}
