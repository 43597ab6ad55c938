// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc

/// The two sources of a connection's socket, beside the disk in a context's ring. Confined to the
/// context's queue.
///
/// Sources are level-triggered: one whose event is not acted upon fires over and over. So the
/// socket's owner says what it waits for. A source is suspended, which is a system call, only when
/// it fires and nobody waits for that: mostly its owner waits again before.
///
/// - Safety: `@unchecked Sendable` because it is confined to the context's queue, on which the
///   sources' handlers run.
public final class SocketSources: @unchecked Sendable {
  private let reader: AIOSource
  private let writer: AIOSource
  private var isReaderSuspended = false
  private var isWriterSuspended = true

  /// Whether to tell when there is something to receive, or the end. At first it is so.
  public var awaitsInput = true {
    didSet {
      guard awaitsInput && isReaderSuspended else { return }
      isReaderSuspended = false
      reader.resume()
    }
  }

  /// Whether to tell when there is room to send. At first it is not so.
  public var awaitsRoom = false {
    didSet {
      guard awaitsRoom && isWriterSuspended else { return }
      isWriterSuspended = false
      writer.resume()
    }
  }

  /// Watches a non-blocking socket, which is this object's to close from now on.
  ///
  /// - Parameters:
  ///   - becameReadable: called while there is something to receive, or the end, as long as
  ///     `awaitsInput`.
  ///   - becameWritable: called while there is room to send, as long as `awaitsRoom`.
  /// - Throws: if a source cannot be made; the socket remains open then.
  public init(
    _ socket: Int32, in context: AIOContext, becameReadable: @escaping @Sendable () -> Void,
    becameWritable: @escaping @Sendable () -> Void
  ) throws(AIOError) {
    reader = try context.makeReadSource(fileDescriptor: socket)
    do throws(AIOError) {
      writer = try context.makeWriteSource(fileDescriptor: socket)
    } catch {
      reader.cancel()
      throw error
    }
    reader.setEventHandler { [unowned self] in
      if awaitsInput { return becameReadable() }
      isReaderSuspended = true
      reader.suspend()
    }
    writer.setEventHandler { [unowned self] in
      if awaitsRoom { return becameWritable() }
      isWriterSuspended = true
      writer.suspend()
    }
    // Cancelled after the reader: no source has the socket any more.
    writer.setCancelHandler { Glibc.close(socket) }
    reader.activate()
    writer.suspend()
    writer.activate()
  }

  /// Ends both sources, and then closes the socket. Once.
  public func close() {
    reader.cancel()
    writer.cancel()
  }
}
