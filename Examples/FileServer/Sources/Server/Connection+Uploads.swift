// SPDX-License-Identifier: Apache-2.0
//
// Uploads: PUT with a body of known length, or in chunks. One buffer at a time: while it is being
// written, nothing is received.

import DispatchAIO
import HTTPRules

/// An upload, and what of it has been received.
struct UploadInProgress {
  let upload: Upload
  /// How many bytes are still to come; `nil` where chunks tell.
  var left: Int64?
  var chunks = ChunkedBody()
  var buffer: AIOBuffer
  var filled = 0
  /// Where in the file the buffer is to be written.
  var position: Int64 = 0
  /// Whether the disk is working on it: nothing is taken then.
  var isBusy = false

  var isComplete: Bool { left.map { $0 == 0 } ?? chunks.isDone }
}

extension Connection {
  func beginUpload(_ head: RequestHead, _ bytes: Bytes) {
    let settings = loop.settings
    let refusal: Int? =
      if !settings.isWritable { 405 } else if head.isPartial {
        400
      } else if !head.isChunked
        && head.contentLength == nil
      { 411 } else if head.contentLength ?? 0 > settings.maxUpload { 413 } else { nil }
    if let refusal {
      return answer(refusal, keepsAlive: reply.keepsAlive && !head.hasBody) {
        if refusal == 405 { $0.add("Allow", self.allowed) }
      }
    }
    guard decodePath(head, bytes) else { return }
    var request = UploadRequest(path: loop.path)
    if head.isConditional {
      request.isExclusive = head.ifNoneMatch?.of(bytes).equals("*") ?? false
      let bytes = Array(bytes)
      request.condition = { validator in
        bytes.withUnsafeBytes { Conditions.evaluate(head, $0, validator) == .proceed }
      }
    }
    let ticket = beginResolving()
    offload { [root = loop.root, request] in
      Result(catching: { () throws(Upload.Refused) in try Upload(request, in: root) })
    } then: { [self] result in
      guard isResolving(ticket) else { return }
      switch result {
      case .success(let upload): began(upload, head)
      case .failure(let refused):
        answer(refused.status, keepsAlive: reply.keepsAlive && !head.hasBody)
      }
      flush()
      proceed()
    }
  }

  private func began(_ upload: Upload, _ head: RequestHead) {
    phase = .receiving
    self.upload = UploadInProgress(
      upload: upload, left: head.isChunked ? nil : head.contentLength ?? 0,
      buffer: loop.buffers.take(atLeast: BufferPool.large))
    if head.expectsContinue && !head.isOld { loop.output.append("HTTP/1.1 100 Continue\r\n\r\n") }
    if self.upload?.isComplete == true { publish() } else { wait(loop.settings.requestTimeout) }
  }

  /// Takes bytes of the body.
  ///
  /// - Returns: how many were used.
  func takeBody(_ bytes: Bytes) -> Int {
    guard var progress = upload else { return 0 }
    var used = 0
    while used < bytes.count, !progress.isComplete, progress.filled < progress.buffer.count {
      guard let count = Self.take(Bytes(rebasing: bytes[used...]), &progress) else {
        refuse(400)
        return bytes.count
      }
      used += count
    }
    loop.statistics.bytesReceived += used
    if progress.position + Int64(progress.filled) > loop.settings.maxUpload {
      refuse(413)
      return bytes.count
    }
    let isReady = progress.isComplete || progress.filled == progress.buffer.count
    upload = progress
    if isReady { write() } else { wait(loop.settings.requestTimeout) }
    return used
  }

  /// - Returns: how many bytes were used; `nil` if they are no chunks.
  private static func take(_ bytes: Bytes, _ progress: inout UploadInProgress) -> Int? {
    let buffer = progress.buffer
    let room = buffer.count - progress.filled
    guard let left = progress.left else {
      var filled = progress.filled
      defer { progress.filled = filled }
      return try? progress.chunks.take(bytes, room: room) { data in
        buffer[filled..<filled + data.count].withUnsafeMutableBytes { $0.copyMemory(from: data) }
        filled += data.count
      }
    }
    let count = min(bytes.count, room, Int(clamping: left))
    buffer[progress.filled..<progress.filled + count].withUnsafeMutableBytes {
      $0.copyMemory(from: Bytes(rebasing: bytes[..<count]))
    }
    progress.filled += count
    progress.left = left - Int64(count)
    return count
  }

  private func write() {
    guard let progress = upload, progress.filled > 0 else { return publish() }
    upload?.isBusy = true
    waitForDisk()
    do throws(AIOError) {
      try loop.context.write(
        progress.upload.file, at: progress.position, from: progress.buffer[..<progress.filled]
      ) { [self] result in
        loop.refreshTime()
        workIsBack()
        guard phase == .receiving else { return }
        switch result {
        case .success(let count) where count == progress.filled: wrote(count)
        case .success: uploadFailed(507)
        case .failure(let error): uploadFailed(error)
        }
      }
      workBegins()
    } catch {
      uploadFailed(error)
    }
  }

  private func wrote(_ count: Int) {
    upload?.position += Int64(count)
    upload?.filled = 0
    upload?.isBusy = false
    guard upload?.isComplete == false else { return publish() }
    wait(loop.settings.requestTimeout)
    proceed()
  }

  /// All has been received and written: makes it durable, and gives it its name.
  private func publish() {
    guard let upload = upload?.upload else { return }
    self.upload?.isBusy = true
    waitForDisk()
    offload {
      Result { () throws(Upload.Refused) in try upload.publish() }
    } then: { [self] result in
      guard phase == .receiving else { return }
      if let buffer = self.upload?.buffer { loop.buffers.give(buffer) }
      self.upload = nil
      switch result {
      case .success(let replaces): answer(replaces ? 204 : 201)
      case .failure(let refused):
        if let error = refused.error { loop.logger.error("\(error)") }
        answer(refused.status)
      }
      flush()
      proceed()
    }
  }

  private func uploadFailed(_ error: AIOError) {
    loop.logger.error("\(error)")
    uploadFailed(HTTPStatus.of(error))
  }

  private func uploadFailed(_ status: Int) {
    upload = nil
    answer(status, keepsAlive: false)
    flush()
  }
}
