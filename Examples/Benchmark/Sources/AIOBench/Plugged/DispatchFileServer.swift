// SPDX-License-Identifier: Apache-2.0
//
// A file server as one writes it with Dispatch: one serial queue, a DispatchSource for each socket.
// PluggedFileServer.swift is the same with this library.

import Dispatch
import Foundation

/// - Safety: `@unchecked Sendable` because it is confined to its queue.
final class DispatchFileServer: @unchecked Sendable {
  /// How files are read.
  enum Reading: String {
    case pread, concurrent
    case dispatchIO = "dispatch-io"
  }

  fileprivate let directory: String
  fileprivate let reading: Reading
  /// Whether files at the directory's top are opened for each request, too.
  fileprivate let opensEach: Bool
  fileprivate let queue = DispatchQueue(label: "file-server")
  fileprivate let readers = DispatchQueue(label: "file-server.readers", attributes: .concurrent)
  fileprivate var files: [String: OpenFile] = [:]
  private let listener: Int32
  private var acceptor: (any DispatchSourceRead)?

  init(_ directory: String, _ reading: Reading, opensEach: Bool) throws {
    (self.directory, self.reading, self.opensEach) = (directory, reading, opensEach)
    listener = try HTTPListener.make()
  }

  func activate() {
    let acceptor = DispatchSource.makeReadSource(fileDescriptor: listener, queue: queue)
    acceptor.setEventHandler { [self] in
      HTTPListener.acceptAll(listener) { Connection($0, self).activate() }
    }
    acceptor.activate()
    self.acceptor = acceptor
    HTTPListener.announce(listener)
  }
}

/// A file, which is closed with its last reference.
private final class OpenFile: @unchecked Sendable {
  let descriptor: Int32
  let size: Int
  /// For DispatchIO.
  let channel: DispatchIO?

  init?(_ path: String, channelOn queue: DispatchQueue?) {
    var status = stat()
    descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0, fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG
    else {
      if descriptor >= 0 { close(descriptor) }
      return nil
    }
    size = Int(status.st_size)
    let descriptor = descriptor
    channel = queue.map {
      DispatchIO(type: .random, fileDescriptor: descriptor, queue: $0) { _ in close(descriptor) }
    }
  }

  deinit {
    // A channel's descriptor is closed by its handler.
    if let channel { channel.close() } else { close(descriptor) }
  }
}

private final class Connection: HTTPConnection, @unchecked Sendable {
  private let server: DispatchFileServer
  private var reader: (any DispatchSourceRead)?
  private var writer: (any DispatchSourceWrite)?
  private var body = UnsafeMutableRawBufferPointer(start: nil, count: 0)
  /// What DispatchIO has read.
  private var data: DispatchData?
  private var isAnswering = false
  private var hasEnded = false

  init(_ socket: Int32, _ server: DispatchFileServer) {
    self.server = server
    super.init(socket)
  }

  deinit { body.deallocate() }

  func activate() {
    let reader = DispatchSource.makeReadSource(fileDescriptor: socket, queue: server.queue)
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
      switch server.reading {
      case .pread: try answer(request, read(request, file(request.path)))
      case .dispatchIO: try readByChannel(request, file(request.path))
      case .concurrent:
        let known = server.files[request.path]
        server.readers.async { [self] in
          let file = known ?? open(request.path)
          let count = read(request, file)
          server.queue.async { [self] in
            keep(file, request.path)
            perform { () throws(ConnectionEnded) in
              try answer(request, count)
              try answerNext()
            }
          }
        }
      }
    }
  }

  // MARK: Files

  private func open(_ path: String) -> OpenFile? {
    OpenFile(
      "\(server.directory)/\(path)", channelOn: server.reading == .dispatchIO ? server.queue : nil)
  }

  private func keep(_ file: OpenFile?, _ path: String) {
    if let file, !server.opensEach, !path.utf8.contains(0x2f) { server.files[path] = file }
  }

  private func file(_ path: String) -> OpenFile? {
    if let file = server.files[path] { return file }
    let file = open(path)
    keep(file, path)
    return file
  }

  /// Reads what is asked for into `body`, and returns the file's size; `nil` if there is none.
  private func read(_ request: FileRequest, _ file: OpenFile?) -> Int? {
    guard let file else { return nil }
    let range = request.range(in: file.size)
    if body.count < range.count {
      body.deallocate()
      body = .allocate(byteCount: range.count, alignment: 4096)
    }
    let count = pread(file.descriptor, body.baseAddress, range.count, off_t(range.lowerBound))
    return count == range.count ? file.size : nil
  }

  private func readByChannel(
    _ request: FileRequest, _ file: OpenFile?
  ) throws(ConnectionEnded) {
    guard let file, let channel = file.channel else { return try answer(request, nil) }
    let range = request.range(in: file.size)
    var all = DispatchData.empty
    channel.read(
      offset: off_t(range.lowerBound), length: range.count, queue: server.queue
    ) { [self] done, part, error in
      if let part { all.append(part) }
      guard done else { return }
      data = all
      perform { () throws(ConnectionEnded) in
        try answer(request, error == 0 && all.count == range.count ? file.size : nil)
        try answerNext()
      }
    }
  }

  // MARK: Answers

  private func answer(_ request: FileRequest, _ size: Int?) throws(ConnectionEnded) {
    guard !hasEnded else { return }
    begin(request, size.map { request.range(in: $0) }, of: size ?? 0)
    try sendMore()
  }

  private func sendMore() throws(ConnectionEnded) {
    var isSent: Bool
    if let data {
      var result: Result<Bool, ConnectionEnded> = .success(true)
      data.withUnsafeBytes { (bytes: UnsafePointer<UInt8>) in
        result = Result { () throws(ConnectionEnded) in
          try send(UnsafeRawBufferPointer(start: bytes, count: data.count))
        }
      }
      isSent = try result.get()
    } else {
      isSent = try send(UnsafeRawBufferPointer(body))
    }
    guard isSent else { return awaitRoom() }
    data = nil
    isAnswering = false
    writer?.cancel()
    writer = nil
  }

  private func awaitRoom() {
    guard writer == nil else { return }
    let writer = DispatchSource.makeWriteSource(fileDescriptor: socket, queue: server.queue)
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
