// SPDX-License-Identifier: Apache-2.0
//
// What the probe does under limits of the process, and while it keeps a file to itself.

import CProbe
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// Lowers a resource limit for the rest of the process.
private func limit(_ resource: __rlimit_resource, to value: UInt) {
  var limit = rlimit(rlim_cur: rlim_t(value), rlim_max: rlim_t(value))
  guard setrlimit(__rlimit_resource_t(resource.rawValue), &limit) == 0 else {
    fatalError("setrlimit: \(Errno(rawValue: errno))")
  }
}

/// The code of the error that `body` throws, or "done".
private func code(_ body: () throws(AIOError) -> Void) -> String {
  do throws(AIOError) {
    try body()
    return "done"
  } catch {
    return error.code.description
  }
}

/// Grows a file past RLIMIT_FSIZE, in every way but by writing, on the main thread, which does not
/// mask SIGXFSZ.
func growPastFileSizeLimit() throws {
  limit(RLIMIT_FSIZE, to: 8192)
  let file = try file()
  print("truncate", code { () throws(AIOError) in try file.truncate(to: 8193) })
  print("preallocate", code { () throws(AIOError) in try file.preallocate(0..<12288) })
  print("within", code { () throws(AIOError) in try file.truncate(to: 8192) })
  // The signal is neither left pending nor masked.
  var (mask, pending) = (sigset_t(), sigset_t())
  pthread_sigmask(0, nil, &mask)
  sigpending(&pending)
  print("masked", sigismember(&mask, SIGXFSZ), "pending", sigismember(&pending, SIGXFSZ))
  // One that was sent by somebody else and is masked stays.
  var only = sigset_t()
  sigemptyset(&only)
  sigaddset(&only, SIGXFSZ)
  pthread_sigmask(SIG_BLOCK, &only, nil)
  pthread_kill(pthread_self(), SIGXFSZ)
  print("truncate", code { () throws(AIOError) in try file.truncate(to: 8193) })
  sigpending(&pending)
  print("pending", sigismember(&pending, SIGXFSZ))
}

/// Writes past RLIMIT_FSIZE with a context on the main queue, whose thread does not mask SIGXFSZ:
/// what goes to the kernel from the loop (files in memory, and everything of `.plain`).
func writePastFileSizeLimitOnMainQueue() throws {
  limit(RLIMIT_FSIZE, to: 8192)
  var options = AIOContext.Options()
  options.submission = .inline
  let context = try AIOContext(queueDepth: 4, queue: .main, options: options)
  let file = try file()
  let buffer = AIOBuffer(count: 8192)
  try context.write(file, at: 8192, from: buffer) {
    if case .failure(let error) = $0 { print(error.code) } else { print($0) }
    exit(0)
  }
  RunLoop.main.run()
}

/// Makes a context with so many descriptors left, which PROBE_DESCRIPTORS says, and a request on
/// it; with PROBE_CONTEXTS=2, when another has been made before.
func createWithFewDescriptors() throws {
  let environment = ProcessInfo.processInfo.environment
  let left = environment["PROBE_DESCRIPTORS"].flatMap(UInt.init) ?? 0
  let file = try file()
  let earlier = environment["PROBE_CONTEXTS"] == "2" ? try AIOContext(queueDepth: 4) : nil
  // Without holes below the last that is in use.
  let last =
    try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap {
      Int32($0)
    }.filter { fcntl($0, F_GETFD) >= 0 }.max() ?? 2
  var next = dup(0)
  while next < last { next = dup(0) }
  close(next)
  limit(RLIMIT_NOFILE, to: UInt(next) + left)
  let buffer = AIOBuffer(count: 4096)
  do {
    let context = try AIOContext(queueDepth: 4)
    let result = try outcome { try context.write(file, at: 0, from: buffer, completion: $0) }
    print("created", result)
  } catch let error as AIOError {
    print(error.code, error)
  }
  if let earlier {
    // Not hurt, though nothing may be left at all.
    while dup(0) >= 0 {}
    for offset in [Int64(0), 1 << 20] {
      print(
        "earlier", try outcome { try earlier.write(file, at: offset, from: buffer, completion: $0) }
      )
    }
  }
}

/// Makes a context when Dispatch is running already, on a thread of its own. strace, which counts
/// the calls of each thread, can so have those of Dispatch's manager fail, and let the library's
/// pass.
func createLate() throws {
  var pipes: [Int32] = [0, 0]
  pipe(&pipes)
  let source = DispatchSource.makeReadSource(fileDescriptor: pipes[0], queue: .global())
  let registered = DispatchSemaphore(value: 0)
  source.setEventHandler {}
  source.setRegistrationHandler { registered.signal() }
  source.activate()
  registered.wait()
  let created = DispatchSemaphore(value: 0)
  Thread.detachNewThread {
    do {
      print("created", try AIOContext(queueDepth: 4).queueDepth)
    } catch let error as AIOError {
      print(error.code, error)
    } catch {
      print(error)
    }
    created.signal()
  }
  created.wait()
  withExtendedLifetime(source) {}
}

/// Opens a path, and says what became of it.
func openPath(_ path: FilePath) {
  for mode in [FileDescriptor.AccessMode.readOnly, .writeOnly] {
    do {
      _ = try AIOFile.open(path, mode, caching: .buffered)
      print("opened")
    } catch {
      print(error.code)
    }
  }
}

/// Opens files where there is no /proc.
func openWithoutProc() throws {
  guard cprobe_hide_proc() == 0, access("/proc/self", F_OK) != 0 else {
    return print("no way to hide /proc: \(Errno(rawValue: errno))")
  }
  for caching in [AIOFile.Caching.direct, .buffered] {
    func open(
      _ name: String, _ options: FileDescriptor.OpenOptions,
      _ permissions: FilePermissions = .ownerReadWrite
    ) {
      do throws(AIOError) {
        let file = try AIOFile.open(
          directory.appending(name), .readWrite, options: options, permissions: permissions,
          caching: caching)
        let flags = fcntl(file.fileDescriptor.rawValue, F_GETFL)
        print(name, file.caching, flags & O_APPEND != 0, try file.size())
      } catch {
        print(name, error.code)
      }
    }
    open("file", [])
    open("file", [.create, .append])
    open("made", [.create, .exclusiveCreate])
    open("made", [.create, .exclusiveCreate])
    unlink(directory.appending("made").string)
    open("link", .create)
    unlink(directory.appending("made").string)
    open("fifo", [])
    open("none", [])
  }
}

/// Opens a path for direct reading, and says what it demands.
func printAlignment(_ path: FilePath) throws {
  let alignment = try AIOFile.open(path, .readOnly).alignment
  print(alignment.memory, alignment.offset)
}

/// Holds a lease on a file until standard input ends; says when somebody else wants the file.
func holdLease() throws {
  let descriptor = try FileDescriptor.open(directory.appending("file"), .readWrite)
  // SIGIO, and not a handler: waited for below.
  var only = sigset_t()
  sigemptyset(&only)
  sigaddset(&only, SIGIO)
  pthread_sigmask(SIG_BLOCK, &only, nil)
  let setLease: Int32 = 1024  // F_SETLEASE
  guard fcntl(descriptor.rawValue, setLease, F_WRLCK) == 0 else {
    return print("no lease: \(Errno(rawValue: errno))")
  }
  print("leased")
  fflush(nil)
  var signal: Int32 = 0
  sigwait(&only, &signal)
  print("wanted")
  fflush(nil)
  _ = readLine()
  _ = fcntl(descriptor.rawValue, setLease, F_UNLCK)
}
