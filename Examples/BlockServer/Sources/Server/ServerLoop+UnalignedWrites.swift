// SPDX-License-Identifier: Apache-2.0
//
// Writes that begin or end within a block: the blocks at the edges are read, completed with the
// payload, and all is written. Their range is locked exclusively meanwhile.

import DispatchAIO

extension ServerLoop {
  /// Reads the bytes of the first and last block that the write leaves as they are, then writes.
  func readEdges(_ command: Command, _ export: Export) {
    let block = Int(export.block)
    let end = command.skip + Int(command.request.length)
    let first = command.skip > 0 ? 0 : nil
    let last = end < command.count ? command.count - block : nil
    // The payload may begin and end in the same block.
    let places = Set([first, last].compactMap { $0 })
    command.edges = places.count
    for place in places {
      // A command in use has a connection.
      submit(.edge(command, place, pool.take(block)), of: command.connection!)
    }
  }

  /// Reads the block at a place of the command's data.
  func readEdge(_ command: Command, _ place: Int, _ edge: PooledBuffer) throws(AIOError) {
    let export = command.connection!.export!  // A command in use has both.
    try context.read(
      export.file, at: Int64(command.start) + Int64(place), into: edge.buffer[..<Int(export.block)]
    ) { [self] in edgeWasRead(command, place, edge, $0) }
  }

  func edgeWasRead(
    _ command: Command, _ place: Int, _ edge: PooledBuffer, _ result: Result<Int, AIOError>
  ) {
    let block = Int(command.connection!.export.block)
    switch result {
    case .success(block): command.copyEdge(at: place, from: edge.base, count: block)
    case .success: command.isShort = true
    case .failure(let error): command.error = command.error ?? error
    }
    pool.give(edge)
    diskRequestEnded()
    command.edges -= 1
    guard command.edges == 0 else { return }
    if command.error == nil && !command.isShort && !command.connection!.isClosed {
      command.transfer()
    } else {
      transferred(command)
    }
  }
}

extension Command {
  /// Copies the bytes of a block around the payload to their place in the buffers.
  ///
  /// - Parameter place: the position of the block in the buffers.
  fileprivate func copyEdge(at place: Int, from edge: UnsafeMutableRawPointer, count block: Int) {
    let end = skip + Int(request.length)
    // A block lies within one buffer, because buffer sizes are multiples of it.
    let memory = buffers[place / BufferPool.largest].base + place % BufferPool.largest
    if place == 0 && skip > 0 {
      memory.copyMemory(from: edge, byteCount: skip)
    }
    if place + block > end {
      let from = end - place
      (memory + from).copyMemory(from: edge + from, byteCount: block - from)
    }
  }
}
