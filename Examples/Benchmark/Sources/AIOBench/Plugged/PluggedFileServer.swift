// SPDX-License-Identifier: Apache-2.0
//
// The server of DispatchFileServer.swift moved to this library: sources of the context's in place
// of DispatchSources, files read by the context.

import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// The ways that files can be read, the best of them last.
let pluggedCachings: [(name: String, caching: AIOFile.Caching)] = [
  ("direct", .direct), ("buffered", .buffered), ("automatic", .automatic),
]

/// - Safety: `@unchecked Sendable` because it is confined to its context's queue.
final class PluggedFileServer: @unchecked Sendable {
  fileprivate let directory: FilePath
  fileprivate let caching: AIOFile.Caching
  /// Whether files at the directory's top are opened for each request, too.
  fileprivate let opensEach: Bool
  fileprivate let context: AIOContext
  fileprivate var files: [String: AIOFile] = [:]
  private let listener: Int32
  private let acceptor: AIOSource

  init(_ directory: String, _ caching: AIOFile.Caching, opensEach: Bool) throws {
    (self.directory, self.caching, self.opensEach) = (FilePath(directory), caching, opensEach)
    context = try AIOContext(queueDepth: 1024, queue: DispatchQueue(label: "file-server"))
    listener = try HTTPListener.make()
    acceptor = try context.makeReadSource(fileDescriptor: listener)
  }

  func activate() {
    acceptor.setEventHandler { [self] in
      HTTPListener.acceptAll(listener) { socket in
        do { try Connection(socket, self).activate() } catch { close(socket) }
      }
    }
    acceptor.activate()
    HTTPListener.announce(listener)
  }
}

private final class Connection: HTTPConnection, @unchecked Sendable {
  private let server: PluggedFileServer
  private var reader: AIOSource?
  private var writer: AIOSource?
  private var buffer = AIOBuffer(count: 0)
  /// The part of the buffer that is the answer's body.
  private var body = 0..<0
  private var isAnswering = false
  private var hasEnded = false

  init(_ socket: Int32, _ server: PluggedFileServer) {
    self.server = server
    super.init(socket)
  }

  func activate() throws {
    let reader = try server.context.makeReadSource(fileDescriptor: socket)
    reader.setEventHandler { [self] in
      perform { () throws(ConnectionEnded) in
        try receive()
        try answerNext()
      }
    }
    reader.setCancelHandler { [self] in close(socket) }
    reader.activate()
    self.reader = reader
  }

  /// Ends the connection if `work` does.
  private func perform(_ work: () throws(ConnectionEnded) -> Void) {
    do { try work() } catch {
      hasEnded = true
      writer?.cancel()
      reader?.cancel()
      (reader, writer) = (nil, nil)
    }
  }

  private func answerNext() throws(ConnectionEnded) {
    while !isAnswering, let request = try nextRequest() {
      isAnswering = true
      if let file = server.files[request.path] {
        try read(request, file)
      } else {
        try open(request)
      }
    }
  }

  // MARK: Files

  private func open(_ request: FileRequest) throws(ConnectionEnded) {
    do {
      try server.context.open(
        server.directory.appending(request.path), .readOnly, caching: server.caching
      ) { [self] result in
        perform { () throws(ConnectionEnded) in
          if let file = try? result.get() {
            if !server.opensEach, !request.path.utf8.contains(0x2f) {
              server.files[request.path] = file
            }
            try read(request, file)
          } else {
            try answer(request, nil)
          }
          try answerNext()
        }
      }
    } catch {
      try answer(request, nil)
    }
  }

  private func read(_ request: FileRequest, _ file: AIOFile) throws(ConnectionEnded) {
    let size = Int(file.status.size)
    let range = request.range(in: size)
    // Where the file is direct, what lies around the range has to be read with it.
    let alignment = file.alignment.offset
    let start = range.lowerBound / alignment * alignment
    let count = (range.upperBound - start + alignment - 1) / alignment * alignment
    if buffer.count < count { buffer = AIOBuffer(count: count) }
    body = range.lowerBound - start..<range.upperBound - start
    do {
      try server.context.read(file, at: Int64(start), into: buffer[..<count]) {
        [self] result in
        perform { () throws(ConnectionEnded) in
          let isRead = (try? result.get()).map { $0 >= body.upperBound } ?? false
          try answer(request, isRead ? size : nil)
          try answerNext()
        }
      }
    } catch {
      try answer(request, nil)
    }
  }

  // MARK: Answers

  private func answer(_ request: FileRequest, _ size: Int?) throws(ConnectionEnded) {
    guard !hasEnded else { return }
    begin(request, size.map { request.range(in: $0) }, of: size ?? 0)
    try sendMore()
  }

  private func sendMore() throws(ConnectionEnded) {
    let isSent = try buffer[body].withUnsafeBytes { bytes throws(ConnectionEnded) in
      try send(bytes)
    }
    guard isSent else { return try awaitRoom() }
    isAnswering = false
    writer?.cancel()
    writer = nil
  }

  private func awaitRoom() throws(ConnectionEnded) {
    guard writer == nil else { return }
    guard let writer = try? server.context.makeWriteSource(fileDescriptor: socket) else {
      throw .init()
    }
    writer.setEventHandler { [self] in
      perform { () throws(ConnectionEnded) in
        try sendMore()
        try answerNext()
      }
    }
    writer.activate()
    self.writer = writer
  }
}
