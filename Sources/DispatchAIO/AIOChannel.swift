// SPDX-License-Identifier: Apache-2.0

public import Dispatch
public import PlatformLibc
internal import SystemPackage

/// A random-access channel of a file with the vocabulary of `DispatchIO`, over a context: for
/// programs that use `DispatchIO`, which change the type.
///
/// ```swift
/// let channel = AIOChannel(type: .random, fileDescriptor: descriptor, queue: queue) { error in
///   close(descriptor)
/// }
/// channel.read(offset: 0, length: .max, queue: queue) { done, data, error in … }
/// ```
///
/// Where `DispatchIO` makes one request per disk at a time, this has all operations under way at
/// once, and of each operation up to four chunks of 1 MiB. Handlers get the same calls with the
/// same data and `errno` numbers: see ``read(offset:length:queue:ioHandler:)``. What differs:
///
/// - A handler is `@Sendable`.
/// - Operations end in any order, also those of overlapping ranges; a ``barrier(execute:)`` comes
///   between.
/// - A read may be of a direct file (`O_DIRECT`), at any offset and length, and what it gets is not
///   copied, if it is more than 32 KiB. Any other file is read as ``AIOFile/Caching/automatic``
///   says. Writes are those of
///   ``AIOContext/write(_:contentsOf:at:queue:completion:)-(_,DispatchData,_,_,_)``, of up to 1 MiB
///   at a time.
/// - A failure of one operation says nothing about later ones.
///
/// All methods may be called from any thread, and never block. A channel whose last reference is
/// gone is closed, as by ``close(flags:)`` without flags.
public final class AIOChannel: Sendable {
  /// The kind of a channel.
  public enum StreamType: Sendable, Hashable {
    /// Each operation has an offset.
    case random
  }

  /// The flags of ``close(flags:)``.
  public struct CloseFlags: OptionSet, Sendable {
    /// The bits of the flags.
    public let rawValue: UInt
    /// Makes flags of bits.
    public init(rawValue: UInt) { self.rawValue = rawValue }
    /// Operations that have not completed are to end, with `ECANCELED`, as soon as possible.
    public static let stop = CloseFlags(rawValue: 1)
  }

  /// The flags of ``setInterval(interval:flags:)``.
  public struct IntervalFlags: OptionSet, Sendable {
    /// The bits of the flags.
    public let rawValue: UInt
    /// Makes flags of bits.
    public init(rawValue: UInt) { self.rawValue = rawValue }
    /// A handler is called at each interval, also if there is less than the low-water mark.
    public static let strictInterval = IntervalFlags(rawValue: 1)
  }

  private let core: ChannelCore

  /// Makes a channel of an open file. Its offsets count from the descriptor's position (`lseek`) at
  /// this moment. The descriptor stays the caller's, who closes it in the cleanup handler, and not
  /// before.
  ///
  /// - Parameters:
  ///   - type: The kind of the channel.
  ///   - fileDescriptor: A descriptor of a regular file or a block device.
  ///   - queue: The queue of the cleanup handler.
  ///   - context: The context that makes the requests; one that all channels of the process share
  ///     unless given.
  ///   - cleanupHandler: Called once, after the channel has been closed and every operation has
  ///     ended: with 0, or the `errno` for which there was no channel, as every operation has said.
  public convenience init(
    type: StreamType, fileDescriptor: Int32, queue: DispatchQueue, on context: AIOContext? = nil,
    cleanupHandler: @escaping @Sendable (_ error: Int32) -> Void
  ) {
    // Taken now, so that the descriptor may be used for other things while the file is opened.
    let position = lseek(fileDescriptor, 0, SEEK_CUR)
    let descriptor = position < 0 ? -1 : fcntl(fileDescriptor, F_DUPFD_CLOEXEC, 0)
    let error = errno
    self.init(on: context, queue, cleanupHandler, position: Int64(position)) {
      descriptor < 0 ? .failure(Errno(rawValue: error)) : .success(descriptor)
    }
  }

  /// Makes a channel of the file at a path, which is opened by a thread that may sleep. Corresponds
  /// to `open(2)` with `O_CLOEXEC`.
  ///
  /// - Parameters:
  ///   - type: The kind of the channel.
  ///   - path: The path of a regular file or a block device.
  ///   - oflag: The flags of `open(2)`.
  ///   - mode: The permissions of the file if it is created, less the process's umask.
  ///   - queue: The queue of the cleanup handler.
  ///   - context: The context that makes the requests; one that all channels of the process share
  ///     unless given.
  ///   - cleanupHandler: Called once, after the channel has been closed and every operation has
  ///     ended: with 0, or the `errno` for which there was no channel, as every operation has said.
  public convenience init(
    type: StreamType, path: String, oflag: Int32, mode: mode_t, queue: DispatchQueue,
    on context: AIOContext? = nil, cleanupHandler: @escaping @Sendable (_ error: Int32) -> Void
  ) {
    self.init(on: context, queue, cleanupHandler, position: 0) {
      while true {
        // The path's bytes are used during the call only.
        let descriptor = unsafe open(path, oflag | O_CLOEXEC, mode)
        if descriptor >= 0 { return .success(descriptor) }
        if errno != EINTR { return .failure(Errno(rawValue: errno)) }
      }
    }
  }

  private init(
    on context: AIOContext?, _ queue: DispatchQueue,
    _ cleanupHandler: @escaping @Sendable (Int32) -> Void, position: Int64,
    _ open: @escaping @Sendable () -> Result<Int32, Errno>
  ) {
    core = ChannelCore(
      position: position, cleanup: { error in queue.async { cleanupHandler(error) } })
    core.open(context, open)
  }

  deinit { core.close(stops: false) }

  /// Reads from the file.
  ///
  /// - Parameters:
  ///   - offset: The offset in bytes, from the position that the descriptor had.
  ///   - length: The number of bytes; `.max` for all up to the end of the file.
  ///   - queue: The queue of the handler.
  ///   - ioHandler: Called once or several times, with the data in order, each part once: with
  ///     `done` `false` whenever there are as many bytes as the low-water mark (1 MiB unless set),
  ///     or the file has ended, and at last with `done` `true` and the rest, which is empty after
  ///     the end of the file. After an error, which is an `errno`, the rest is what was read before
  ///     it, or `nil`.
  public func read(
    offset: off_t, length: Int, queue: DispatchQueue,
    ioHandler: @escaping @Sendable (_ done: Bool, _ data: DispatchData?, _ error: Int32) -> Void
  ) {
    core.schedule(ChannelRead(core, Int64(offset), length, queue, ioHandler))
  }

  /// Writes to the file.
  ///
  /// - Parameters:
  ///   - offset: The offset in bytes, from the position that the descriptor had.
  ///   - data: The bytes, which are written from where they are.
  ///   - queue: The queue of the handler.
  ///   - ioHandler: Called once or several times: with `done` `false` and the data that is still to
  ///     be written, whenever as much as the low-water mark (1 MiB unless set) has been, and last
  ///     with `done` `true` and `nil`, or, after an error, which is an `errno`, the data that was
  ///     not written.
  public func write(
    offset: off_t, data: DispatchData, queue: DispatchQueue,
    ioHandler: @escaping @Sendable (_ done: Bool, _ data: DispatchData?, _ error: Int32) -> Void
  ) {
    core.schedule(ChannelWrite(core, Int64(offset), data, queue, ioHandler))
  }

  /// Runs a block on a queue of its own once every operation that was made before has ended, and
  /// holds back those that are made after until it has returned. It may use the file, as for
  /// `fsync(2)`.
  public func barrier(execute: @escaping @Sendable () -> Void) {
    core.barrier(execute)
  }

  /// Sets the least number of bytes for which a handler is called with `done` `false`, for
  /// operations that are made from now on. It raises the high-water mark to it.
  public func setLimit(lowWater: Int) {
    core.limits.withLock {
      $0.low = max(0, lowWater)
      $0.high = max($0.high, $0.low, 1)
    }
  }

  /// Sets the most bytes that a read's handler is called with, and that one request of an operation
  /// transfers, for operations that are made from now on.
  /// It lowers the low-water mark to it.
  public func setLimit(highWater: Int) {
    core.limits.withLock {
      $0.high = max(1, highWater)
      $0.low = min($0.low, $0.high)
    }
  }

  /// Sets the interval at which a handler is called, for operations that are made from now on.
  ///
  /// - Parameters:
  ///   - interval: The interval; `.never` or 0 for none.
  ///   - flags: With ``IntervalFlags/strictInterval`` a handler is called at each interval, with
  ///     what there is, which may be nothing. Without it the interval changes nothing, because a
  ///     handler is called as soon as there is as much as the low-water mark.
  public func setInterval(interval: DispatchTimeInterval, flags: IntervalFlags = []) {
    let isStrict = flags.contains(.strictInterval) && interval.isPositive
    core.limits.withLock { $0.interval = isStrict ? interval : nil }
  }

  /// Closes the channel: operations that are made from now on end with `ECANCELED`, and those that
  /// were made before complete, or, with ``CloseFlags/stop``, end with `ECANCELED`, too. Then the
  /// cleanup handler is called.
  public func close(flags: CloseFlags = []) {
    core.close(stops: flags.contains(.stop))
  }
}
