// SPDX-License-Identifier: Apache-2.0
//
// The execution of a request, from its start through the lock of its range to its answer. Calls
// that may block are made on the export's worker queue.

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
      lock(command, command.start..<command.start + UInt64(command.count), exclusive: false)
    case .write where request.length > 0:
      if command.range.upperBound > export.wholeBlocks
        || command.count != Int(request.length)
      {
        lock(command, export.pages(command.range), exclusive: true)
      } else {
        lock(command, command.range, exclusive: false)
      }
    case .trim where request.length > 0, .writeZeroes where request.length > 0:
      lock(command, export.pages(command.range), exclusive: true)
    case .flush: sync(command)
    case .blockStatus: execute(command)
    default: command.connection!.finish(command)
    }
  }

  @inline(__always)
  private func lock(_ command: Command, _ range: Range<UInt64>, exclusive: Bool) {
    let ticket = command.connection!.export.ranges.acquire(
      range, exclusive: exclusive,
      granted: { [self] ticket in
        context.async { [self] in
          command.ticket = ticket
          execute(command)
        }
      })
    guard let ticket else { return }
    command.ticket = ticket
    execute(command)
  }

  @inline(__always)
  private func unlock(_ command: Command) {
    guard let ticket = command.ticket else { return }
    command.ticket = nil
    command.connection!.export.ranges.release(ticket)
  }

  /// Executes a command whose range is locked.
  @inline(__always)
  private func execute(_ command: Command) {
    let request = command.request
    let export = command.connection!.export!
    switch request.command {
    case .read: command.transfer()
    case .write:
      if command.range.upperBound > export.wholeBlocks {
        onWorker(command, export) { export.write(payloadOf: $0) }
      } else if command.count != Int(request.length) {
        readEdges(command, export)
      } else {
        command.transfer()
      }
    case .trim:
      onWorker(command, export) { export.trim($0.range) }
    case .writeZeroes:
      onWorker(command, export) {
        export.zero(
          $0.range, keepsRoom: request.flags.contains(.noHole),
          onlyFast: request.flags.contains(.fastZero))
      }
    case .blockStatus:
      let most = request.flags.contains(.requestOne) ? 1 : Export.mostExtents
      export.worker.async { [self] in
        let extents = export.extents(command.range, most: most)
        context.async { [self] in answer(command, extents) }
      }
    case .flush, .cache, .disconnect: preconditionFailure("nothing to lock for")
    }
  }

  private func onWorker(
    _ command: Command, _ export: Export, _ body: @escaping @Sendable (Command) -> Errno?
  ) {
    export.worker.async { [self] in
      let errno = body(command)
      context.async { [self] in
        if let errno {
          unlock(command)
          fail(command, NBD.ErrorCode(errno), "\(errno)")
        } else {
          finishWrite(command)
        }
      }
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
      return fail(command, .inputOutput, "the file is shorter than it was")
    }
    if command.request.command == .read {
      unlock(command)
      guard command.isComplete(connection.export) else {
        return fail(command, .inputOutput, "the file is shorter than it was")
      }
      connection.finish(command)
    } else {
      finishWrite(command)
    }
  }

  @inline(__always)
  private func finishWrite(_ command: Command) {
    unlock(command)
    if command.request.flags.contains(.fua) {
      sync(command)
    } else {
      command.connection!.finish(command)
    }
  }

  private func answer(_ command: Command, _ extents: [Export.Extent]) {
    var bytes: [UInt8] = []
    bytes.append(number: NBD.allocationContextID)
    for extent in extents {
      bytes.append(number: UInt32(extent.length))
      bytes.append(number: extent.isHole ? NBD.stateHole | NBD.stateZero : 0)
    }
    command.setExtra(bytes)
    command.connection!.finish(command)
  }

  /// Answers with an error.
  func fail(_ command: Command, _ error: NBD.ErrorCode, _ message: String) {
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
