// SPDX-License-Identifier: Apache-2.0

/// A way to do a job.
protocol Engine {
  /// Does all of the job, keeping `depth` requests in flight until the time is over.
  func run(_ job: Job, _ meter: Meter) throws
}

enum Engines {
  /// The names of all engines.
  static let names = [
    "libaio", "io-ctx", "dispatch-aio", "dispatch-aio-queue", "dispatch-aio-inline",
    "dispatch-aio-source", "dispatch-aio-spinning", "dispatch-aio-async", "dispatch-aio-actor",
    "dispatch-aio-buffered", "dispatch-aio-automatic", "dispatch-aio-channel",
    "ioring", "nio-threadpool", "gcd-pread", "dispatchio", "nio-filesystem",
    "dispatch-aio-nio", "fio-libaio", "fio-io_uring",
  ]

  /// A description of each, for the help.
  static let descriptions = """
    libaio: a plain C loop over libaio, batching (the limit). io-ctx: the C original's way, a \
    system call per request, an eventfd, poll and read. dispatch-aio: this library, callbacks on \
    its queue; dispatch-aio-queue: callbacks on another queue; dispatch-aio-inline: without \
    RWF_NOWAIT; dispatch-aio-source: never waiting in the ring; dispatch-aio-spinning: looking at the ring for \
    200 us; dispatch-aio-async: with await, in an actor \
    on its queue, by tasks that prefer that queue; dispatch-aio-actor: by any tasks; \
    dispatch-aio-buffered, dispatch-aio-automatic: as dispatch-aio, with files opened that way, \
    whatever --direct says; dispatch-aio-channel: AIOChannel, which has the vocabulary of \
    DispatchIO. ioring: \
    swift-system's IORing. nio-threadpool: SwiftNIO's NIOThreadPool and pread. \
    gcd-pread: a concurrent queue and pread. dispatchio: DispatchIO. nio-filesystem: SwiftNIO's \
    NIOFileSystem (buffered). dispatch-aio-nio: the same over DispatchAIONIO, in a build with \
    --traits Hummingbird. fio-libaio, fio-io_uring: fio, where it is installed.
    """

  static func make(_ name: String) throws -> any Engine {
    switch name {
    case "libaio": CEngine(batches: true)
    case "io-ctx": CEngine(batches: false)
    case "dispatch-aio": DispatchAIOEngine()
    case "dispatch-aio-queue": DispatchAIOEngine(elsewhere: true)
    case "dispatch-aio-inline": DispatchAIOEngine(submission: .inline)
    case "dispatch-aio-source": DispatchAIOEngine(waiting: .source)
    case "dispatch-aio-spinning":
      DispatchAIOEngine(waiting: .spinning(upTo: .microseconds(200)))
    case "dispatch-aio-buffered": DispatchAIOEngine(caching: .buffered)
    case "dispatch-aio-automatic": DispatchAIOEngine(caching: .automatic)
    case "dispatch-aio-async": AsyncEngine()
    case "dispatch-aio-actor": AsyncEngine(prefersLoop: false)
    case "ioring": IORingEngine()
    case "nio-threadpool": NIOThreadPoolEngine()
    case "gcd-pread": ConcurrentQueueEngine()
    case "dispatchio": DispatchIOEngine()
    case "dispatch-aio-channel": ChannelEngine()
    case "nio-filesystem": NIOFileSystemEngine()
    case "dispatch-aio-nio": NIOFileSystemEngine(usesDispatchAIO: true)
    default:
      throw BenchError("no engine '\(name)'; there are \(names.joined(separator: ", "))")
    }
  }
}
