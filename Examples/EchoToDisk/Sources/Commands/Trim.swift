// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import ServerSupport
import SystemPackage

struct Trim: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Delete the oldest segments of a journal.",
    discussion: """
      First records where the journal begins from now on, so that what is deleted is not taken for \
      damage. May be used while a server is writing, also when the disk is full. The last segment \
      that has batches cannot be trimmed.
      """)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The first segment to keep.", valueName: "segment"))
  var before: UInt64

  func run() throws {
    let path = journal.directory
    do {
      let directory = try OpenDirectory(path)
      // Two at once would not know of each other's mark. A daemon locks the directory, not this.
      let lock = openat(
        directory.file.rawValue, JournalFormat.marksName,
        O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
      defer { close(lock) }
      if lock >= 0 { flock(lock, LOCK_EX) }
      let inspection = try JournalInspection(path)
      guard inspection.marks.isWhole else {
        throw Failure("\(path): the file `marks` is damaged; see echo-to-disk verify \(path)")
      }
      guard let file = inspection.segments.first(where: { $0.number == before }),
        file.failure == nil, case .success(let reader) = inspection.open(file),
        let first = reader.firstHeader()
      else {
        throw Failure("--before \(before): no readable segment that has batches")
      }
      let marks = try JournalMarkWriter(in: directory.file, file.header.identity, isNew: false)
      try marks.updateBeginning { mark in
        mark.segment = max(mark.segment, before)
        mark.sequence = max(mark.sequence, first.before)
        mark.nextConnection = max(mark.nextConnection, first.nextConnection)
      }
      var count = 0
      for name in try directory.names() {
        guard let number = JournalFormat.segment(ofFileName: name), number < before else {
          continue
        }
        guard unlinkat(directory.file.rawValue, name, 0) == 0 else {
          throw Failure("\(path)/\(name): \(Errno(rawValue: errno))")
        }
        count += 1
      }
      try printLine("\(count) segments deleted; the journal begins with segment \(before)")
    } catch let errno as Errno {
      throw Failure("\(path): \(errno)")
    } catch let error as JournalError {
      throw Failure(error.description)
    }
  }
}
