// SPDX-License-Identifier: Apache-2.0
//
// The execution of a request, from its start through the lock of its range to its answer. Calls
// that may block are made by the export's worker.

import DispatchAIO
import SystemPackage

extension ServerLoop {
  /// Does what a request asks for, which its connection has checked, and then answers it.
  @inline(__always)
  func start(_ command: Command) {
    let request = command.request
    // A command in use has a connection, which has chosen an export.
    let export = command.connection!.export!
    switch request.command {
    case .read where request.length > 0:
      // Whatever is written meanwhile: the read has the bytes before it, or those after it.
      command.transfer()
    case .write where request.length > 0:
      if command.range.upperBound > export.wholeBlocks {
        export.worker.add(Job(command))
      } else if command.count != Int(request.length) {
        lockExclusively(command)
      } else {
        lock(command, command.range, exclusive: false)
      }
    case .trim where request.length > 0, .writeZeroes where request.length > 0, .blockStatus:
      export.worker.add(Job(command))
    case .flush: sync(command)
    default: command.connection!.finish(command)
    }
  }

  @inline(__always)
  private func lock(_ command: Command, _ range: Range<UInt64>, exclusive: Bool) {
    let connection = command.connection!
    let (ticket, isGranted) = connection.export.ranges.acquire(
      range, exclusive: exclusive,
      granted: { [self] ticket in
        context.async { [self] in
          connection.waitingForRange[ticket] = nil
          execute(command)
        }
      })
    command.ticket = ticket
    if isGranted {
      execute(command)
    } else {
      connection.waitingForRange[ticket] = command
    }
  }

  /// Locks the range of an unaligned write, for which no more than a few of its connection's may
  /// wait: each is granted in its turn, and whoever wants that range meanwhile waits for them.
  private func lockExclusively(_ command: Command) {
    let connection = command.connection!
    guard connection.exclusiveCount < Connection.mostExclusive else {
      return connection.waitingForExclusive.append(command)
    }
    connection.exclusiveCount += 1
    command.isExclusive = true
    lock(command, connection.export.pages(command.range), exclusive: true)
  }

  @inline(__always)
  private func unlock(_ command: Command) {
    guard let ticket = command.ticket else { return }
    command.ticket = nil
    let connection = command.connection!
    connection.export.ranges.release(ticket)
    guard command.isExclusive else { return }
    connection.exclusiveCount -= 1
    if let next = connection.waitingForExclusive.popFirst() { lockExclusively(next) }
  }

  /// Drops what has not begun of a connection that has ended.
  func dropRequests(of connection: Connection) {
    guard let export = connection.export else { return }
    var commands = export.worker.drop(connection)
    commands += connection.waitingForExclusive
    connection.waitingForExclusive = []
    for (ticket, command) in connection.waitingForRange where export.ranges.withdraw(ticket) {
      command.ticket = nil
      commands.append(command)
    }
    commands += syncs[connection.exportIndex].takeWaiting(of: connection)
    for command in commands { connection.release(command) }
    dropWaiting(of: connection)
  }

  /// Executes a write whose range is locked.
  @inline(__always)
  private func execute(_ command: Command) {
    let connection = command.connection!
    if connection.isClosed {
      unlock(command)
      connection.release(command)
    } else if command.isExclusive {
      readEdges(command, connection.export)
    } else {
      command.transfer()
    }
  }

  // MARK: Answers

  /// Answers a command whose disk requests have completed.
  @inline(__always)
  func transferred(_ command: Command) {
    let connection = command.connection!
    if let error = command.error {
      unlock(command)
      return fail(command, NBD.ErrorCode(error.errno ?? .ioError), "\(error)")
    }
    if command.isShort {
      unlock(command)
      return failBehindTheEnd(command)
    }
    if command.request.command == .read {
      unlock(command)
      guard command.isComplete(connection.export) else { return failBehindTheEnd(command) }
      connection.finish(command)
    } else {
      finishWrite(command)
    }
  }

  /// Answers a command that the worker has done.
  func finished(_ job: Job) {
    let command = job.command
    switch job.result {
    case .failure(let failure):
      fail(command, NBD.ErrorCode(failure.errno), "\(failure.errno)")
    case .success(let extents) where command.request.command == .blockStatus:
      answer(command, extents)
    case .success: finishWrite(command)
    }
  }

  @inline(__always)
  private func finishWrite(_ command: Command) {
    unlock(command)
    if command.request.flags.contains(.fua) && !command.connection!.isClosed {
      sync(command)
    } else {
      command.connection!.finish(command)
    }
  }

  private func answer(_ command: Command, _ extents: [Export.Extent]) {
    guard !command.connection!.isClosed else { return command.connection!.release(command) }
    var bytes: [UInt8] = []
    bytes.append(number: NBD.allocationContextID)
    for extent in extents {
      bytes.append(number: UInt32(extent.length))
      bytes.append(number: extent.isHole ? NBD.stateHole | NBD.stateZero : 0)
    }
    command.setExtra(bytes)
    command.connection!.finish(command)
  }

  private func failBehindTheEnd(_ command: Command) {
    let request = command.request
    let export: Export = command.connection!.export
    fail(
      command, .inputOutput,
      """
      \(request.command) of \(request.length) bytes at offset \(request.offset) of \(export.path): \
      the file ends before; it had \(export.size) bytes when it was opened
      """)
  }

  /// Answers with an error.
  func fail(_ command: Command, _ error: NBD.ErrorCode, _ message: String) {
    guard !command.connection!.isClosed else { return command.connection!.release(command) }
    statistics.failures += 1
    if error == .inputOutput || error == .noMemory {
      logger.error("\(command.connection!.peer): \(message)")
    }
    command.connection!.finish(command, (error, message))
  }
}

extension NBD.ErrorCode {
  /// The code that a client is told for the error of a system call.
  init(_ errno: Errno) {
    switch errno {
    case .notPermitted, .permissionDenied, .readOnlyFileSystem: self = .notPermitted
    case .noMemory: self = .noMemory
    case .invalidArgument: self = .invalid
    case .noSpace, .diskQuotaExceeded, .fileTooLarge: self = .noSpace
    case .notSupported: self = .notSupported
    default: self = .inputOutput
    }
  }
}
