// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import Glibc
import ServerSupport
import SystemPackage

@main
struct CopyFile: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-copy",
    abstract: "Copies a file, with several pieces of it on their way at once.",
    discussion: """
      The copy gets its name when it is complete: whatever happens to the copying, there is no half \
      file under that name; with --fsync, nor whatever happens to the machine. Before, it has no \
      name (O_TMPFILE), or a temporary one (.aio-copy-…) where the filesystem cannot do that, as \
      NFS cannot: SIGINT, SIGTERM, SIGQUIT, SIGHUP (unless it is ignored, as by nohup) and errors \
      remove that; kill -9 and a power failure can leave it behind. SIGUSR1 and SIGUSR2 are ignored.

      Holes stay holes, and the permissions are kept; of an access control list without --preserve \
      only what gives nobody a right that he does not have to SOURCE. What is appended to SOURCE \
      meanwhile is not copied; it is an error when SOURCE becomes shorter. Files whose size is not \
      the number of their bytes, as in /proc and /sys, are read to their end. Reads and writes are \
      direct (O_DIRECT) where the filesystem has that, and go through the page cache elsewhere, and \
      for a file of many small extents.

      On a terminal, standard error shows how far it is. Exits with 0 when the copy is there, with \
      1 and a sentence on standard error when it is not, and with 128 + its number after a signal.
      """,
    version: "1.0.0")

  @Argument(help: "The file to copy: a regular file.", completion: .file())
  var source: PathArgument

  @Argument(
    help: "The copy, or a directory that is to hold it, under the source's name.",
    completion: .file())
  var dest: PathArgument

  @Option(help: ArgumentHelp("How many pieces are on their way at once.", valueName: "n"))
  var queueDepth = 8

  @Option(
    help: ArgumentHelp(
      "The size of a piece: a multiple of 4KiB. (default: 1MiB)", valueName: "bytes"),
    transform: ByteCount.parse)
  var chunk = ByteCount(1 << 20)

  @Flag(help: "Exit only when the copy, and its name, are durable.")
  var fsync = false

  @Flag(help: "Read both files back and compare them, before the copy gets its name.")
  var verify = false

  @Flag(help: "Replace DEST if it exists; a symbolic link is replaced, not followed.")
  var force = false

  @Flag(
    help: """
      Keep the owner (if permitted), the access control list, the times, and the extended \
      attributes, too.
      """)
  var preserve = false

  @Flag(help: "Show no progress.")
  var quiet = false

  static func main() { Program.run(Self.self) }

  /// The signal handlers, kept for the life of the process.
  nonisolated(unsafe) private static var signals: ShutdownSignals?  // written once, by `run`

  func validate() throws {
    try require("queue-depth", queueDepth, in: 1...1024)
    try require("chunk", chunk, in: 4096...1 << 30, multipleOf: 4096)
  }

  func run() throws {
    let copy = PendingFile()
    let progress = ProgressBar(isShown: !quiet && isatty(STDERR_FILENO) == 1)
    let task = CopyTask(
      source: source, destination: dest, queueDepth: queueDepth, chunk: chunk.bytes,
      isDurable: fsync, verifies: verify, replaces: force, preserves: preserve)
    // There is nothing to remove before the signals are taken.
    let signals = ShutdownSignals(queue: DispatchQueue(label: "signals")) {
      Task {
        do {
          let bytes = try await task.run(copy, progress)
          progress.finish(bytes)
          Glibc.exit(0)
        } catch {
          copy.remove()
          progress.clear()
          FileDescriptor.writeError("aio-copy: \("\(error)".escaped)\n")
          Glibc.exit(1)
        }
      }
    } handler: { number, _ in
      // As the process ends, the kernel completes the requests on the file, which has no name then.
      copy.remove()
      progress.clear()
      Glibc.exit(128 + number)
    }
    Self.signals = signals
    ShutdownSignals.runQueuesForever()
  }
}
