// SPDX-License-Identifier: Apache-2.0
//
// The server of DispatchFileServer.swift moved to this library: sources of the context's in place
// of DispatchSources, files opened and sent by the context.

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
  private var sending: AIOSend?
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

  /// Ends the connection if `work` does. The socket stays open for what is being sent.
  private func perform(_ work: () throws(ConnectionEnded) -> Void) {
    do { if !hasEnded { try work() } } catch { hasEnded = true }
    guard hasEnded else { return }
    sending?.cancel()
    if sending == nil { reader?.cancel() } else { reader?.suspend() }
    reader = sending == nil ? nil : reader
  }

  private func answerNext() throws(ConnectionEnded) {
    while !isAnswering, let request = try nextRequest() {
      isAnswering = true
      if let file = server.files[request.path] {
        try send(file, request)
      } else {
        try open(request)
      }
    }
  }

  private func open(_ request: FileRequest) throws(ConnectionEnded) {
    do {
      try server.context.open(
        server.directory.appending(request.path), .readOnly, caching: server.caching
      ) { [self] result in
        perform { () throws(ConnectionEnded) in
          guard let file = try? result.get() else { return try refuse(request) }
          if !server.opensEach, !request.path.utf8.contains(0x2f) {
            server.files[request.path] = file
          }
          try send(file, request)
        }
      }
    } catch {
      try refuse(request)
    }
  }

  private func send(_ file: AIOFile, _ request: FileRequest) throws(ConnectionEnded) {
    let size = Int(file.status.size)
    let range = request.range(in: size)
    begin(request, range, of: size)
    do {
      sending = try server.context.send(
        file, at: Int64(range.lowerBound), count: range.count, to: socket, header: takeHead()
      ) { [self] result in
        sending = nil
        perform { () throws(ConnectionEnded) in
          guard case .success(range.count) = result else { throw .init() }
          isAnswering = false
          try answerNext()
        }
      }
    } catch {
      throw .init()
    }
  }

  /// Answers that there is no such file.
  private func refuse(_ request: FileRequest) throws(ConnectionEnded) {
    begin(request, nil, of: 0)
    // Some 50 bytes, for which a socket that has taken all else has room.
    guard try send(UnsafeRawBufferPointer(start: nil, count: 0)) else { throw .init() }
    isAnswering = false
    try answerNext()
  }
}
