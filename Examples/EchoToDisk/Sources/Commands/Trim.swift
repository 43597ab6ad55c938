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
      that has batches cannot be trimmed, nor what follows it. A segment that is being read, by \
      list, replay or verify, is not deleted, nor what follows it: says so, and exits with 1.
      """)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The first segment to keep.", valueName: "segment"))
  var before: UInt64?

  @OptionGroup var keep: RetentionOptions

  @Flag(help: "Say what would be deleted, and delete nothing.")
  var dryRun = false

  func validate() throws {
    guard (before != nil) != keep.retention.isLimited else {
      throw ValidationError(
        before == nil
          ? "nothing to trim by: give --before, or --keep-bytes, --keep-days or both"
          : "--before says which segments to keep: not with --keep-bytes or --keep-days")
    }
  }

  func run() throws {
    let path = journal.directory
    do {
      try trim(path)
    } catch let errno as Errno {
      throw Failure("\(path): \(errno)")
    } catch let error as JournalError {
      throw Failure(error.description)
    }
  }

  private func trim(_ path: FilePath) throws {
    let directory = try OpenDirectory(path)
    let trim = try JournalTrim(path, directory)
    let first = before ?? trim.first(keeping: keep.retention)
    if let before, !trim.canBegin(with: before) {
      let range =
        trim.beginnings.map { "the first that has some is \($0), the last \($1)" } ?? "none has any"
      throw Failure("--before \(before): no readable segment with batches; \(range)")
    }
    // Never nil: the marks are whole.
    let marks =
      try dryRun
      ? nil
      : trim.identity.map {
        try JournalMarkWriter(in: directory.file, $0, isNew: false)
      }
    let outcome = try trim.run(before: first, marks)
    try printLine(
      """
      \(outcome.segments) segments \(dryRun ? "would be deleted" : "deleted"), \
      \(ByteCount(outcome.bytes)); the journal \(dryRun ? "would begin" : "begins") with segment \
      \(outcome.first)
      """)
    if let busy = outcome.busy {
      throw Failure("segment \(busy) is being read, and kept with what follows it; retry later")
    }
  }
}
