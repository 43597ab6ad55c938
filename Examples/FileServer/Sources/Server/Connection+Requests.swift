// SPDX-License-Identifier: Apache-2.0
//
// What a request is answered with.

import DispatchAIO
import Glibc
import HTTPRules

extension Connection {
  /// For how long a file is waited for that cannot be opened for want of descriptors.
  private static let descriptorTimeout: UInt64 = 5_000_000_000

  /// Begins to answer a request; what can be answered at once is.
  ///
  /// - Parameters:
  ///   - bytes: The head's, valid during the call.
  ///   - isLast: Whether the connection is to close after the answer, whatever the client wants.
  func begin(_ head: RequestHead, _ bytes: Bytes, isLast: Bool) {
    reply = Reply()
    // A body that nobody reads would be taken for the next request.
    reply.keepsAlive =
      head.keepsAlive && (!head.hasBody || head.method == .put) && !isLast
    reply.isOld = head.isOld
    reply.isHead = head.method == .head
    if loop.accessLog != nil { reply.logged = AccessLog.Request(head, bytes) }
    switch head.method {
    case .get, .head: serve(head, bytes)
    case .put: beginUpload(head, bytes)
    case .options: answer(204) { $0.add("Allow", self.allowed) }
    case .unsupported: answer(405) { $0.add("Allow", self.allowed) }
    case .unknown: answer(501)
    }
  }

  var allowed: StaticString {
    loop.settings.isWritable ? "GET, HEAD, OPTIONS, PUT" : "GET, HEAD, OPTIONS"
  }

  /// Decodes the path into `loop.path`, or answers that it cannot be.
  func decodePath(_ head: RequestHead, _ bytes: Bytes) -> Bool {
    do throws(TargetPath.Refusal) {
      try TargetPath.decode(head.target.of(bytes), into: &loop.path)
      return true
    } catch {
      answer(error == .malformed ? 400 : 404, keepsAlive: reply.keepsAlive && !head.hasBody)
      return false
    }
  }

  private func serve(_ head: RequestHead, _ bytes: Bytes) {
    guard decodePath(head, bytes) else { return }
    let path = loop.path
    if !path.isDirectory, let file = loop.cache.find(path.bytes, now: loop.now, turn: loop.turn) {
      return respond(.file(file), head, bytes)
    }
    let codings = head.acceptEncoding.map { ContentCoding.accepted(by: $0.of(bytes)) } ?? []
    let resolution = loop.root.resolve(path, codings: codings, mayWait: false)
    guard case .wouldBlock = resolution else {
      if !path.isDirectory, case .file(let file) = resolution {
        loop.cache.opened(path.bytes, file, now: loop.now)
      }
      return respond(resolution, head, bytes)
    }
    let ticket = beginResolving()
    let (root, bytes) = (loop.root, Array(bytes))
    offload {
      root.resolve(path, codings: codings, mayWait: true)
    } then: { [self] resolution in
      guard isResolving(ticket) else { return }
      bytes.withUnsafeBytes { respond(resolution, head, $0) }
      if flush() { releaseListing() }
      proceed()
    }
  }

  /// The request waits to be looked up.
  ///
  /// - Returns: Its ticket. When the look-up comes back, the request may have been given up, and
  ///   another be looked up.
  func beginResolving() -> Int {
    phase = .resolving
    if reply.ticket == 0 { reply.ticket = loop.nextTicket() }
    return reply.ticket
  }

  func isResolving(_ ticket: Int) -> Bool { phase == .resolving && reply.ticket == ticket }

  private func respond(_ resolution: Resolution, _ head: RequestHead, _ bytes: Bytes) {
    switch resolution {
    case .file(let file): respond(file, head, bytes)
    case .directoryWithoutSlash: redirect(head, bytes)
    case .listing(let page): respond(page)
    case .failed(EMFILE), .failed(ENFILE): waitForDescriptor(head, bytes)
    case .failed(let errno): answer(HTTPStatus.of(errno))
    case .wouldBlock: answer(500)  // Never of a look-up that may wait.
    }
  }

  private func respond(_ listing: [UInt8]) {
    guard loop.listingBytes + listing.count <= ServerLoop.listingLimit else { return answer(503) }
    loop.listingBytes += listing.count
    listingBytes = listing.count
    answer(200, type: "text/html; charset=utf-8", body: listing) {
      $0.add("Cache-Control", "no-cache")
    }
  }

  /// The client has taken the listing, or is gone.
  func releaseListing() {
    loop.listingBytes -= listingBytes
    listingBytes = 0
  }

  /// Tries to open the file once others have closed theirs; answers 503 when that takes too long.
  private func waitForDescriptor(_ head: RequestHead, _ bytes: Bytes) {
    let (ticket, bytes) = (beginResolving(), Array(bytes))
    if !reply.isWaitingForDescriptor {
      reply.isWaitingForDescriptor = true
      wait(min(Self.descriptorTimeout, loop.settings.requestTimeout))
    }
    loop.waitForDescriptor { [self] in
      guard isResolving(ticket) else { return }
      bytes.withUnsafeBytes { serve(head, $0) }
      flush()
      proceed()
    }
  }

  private func respond(_ file: ServedFile, _ head: RequestHead, _ bytes: Bytes) {
    waitForDisk()
    reply.isWaitingForDescriptor = false
    reply.file = file
    if head.isConditional {
      switch Conditions.evaluate(head, bytes, file.validator(now: loop.seconds)) {
      case .proceed: break
      case .notModified: return answer(304) { self.appendValidators(of: file, to: $0) }
      case .failed: return answer(412)
      }
    }
    reply.end = file.size
    reply.isHeadPending = true
    // A range means nothing to HEAD.
    if let field = head.range, head.method == .get,
      // Most have none, and no validator is made for them.
      head.ifRange == nil
        || Conditions.rangeCounts(head, bytes, file.validator(now: loop.seconds))
    {
      switch ByteRanges.parse(field.of(bytes).octets.span, size: file.size) {
      case .whole: break
      case .one(let range):
        reply.range = range
        (reply.position, reply.end) = (range.lowerBound, range.upperBound)
      case .several(let ranges):
        reply.multipart = Multipart(ranges, type: file.type.name, size: file.size)
        reply.end = 0
      case .unsatisfiable:
        return answer(416) { $0.add("Content-Range", "bytes */\(file.size)") }
      }
      if reply.range != nil || reply.multipart != nil { reply.status = 206 }
    }
    reply.length = reply.multipart?.length ?? reply.end - reply.position
    send()
  }

  /// The head of an answer that is a file, or parts of one.
  func appendFileHead() {
    guard let file = reply.file else { return }
    let head = ResponseHead(reply.status, date: loop.dateLine, to: loop.output)
    if let multipart = reply.multipart {
      head.add("Content-Type", "multipart/byteranges; boundary=\(multipart.boundary)")
    } else {
      head.add("Content-Type", file.type.name)
    }
    head.add(contentLength: reply.length)
    if let range = reply.range { head.add(contentRange: range, of: file.size) }
    head.add("Accept-Ranges", "bytes")
    appendValidators(of: file, to: head)
    if let coding = file.coding { head.add("Content-Encoding", coding.name) }
    head.end(keepsAlive: reply.keepsAlive, isOld: reply.isOld)
  }

  private func appendValidators(of file: ServedFile, to head: ResponseHead) {
    head.output.append("Last-Modified: ")
    let modified = HTTPDate.bytes(file.lastModified(now: loop.seconds))
    modified.span.withUnsafeBytes { head.output.append($0) }
    head.output.append("\r\nETag: ")
    file.appendTag(to: head.output)
    head.output.append("\r\n")
    if file.varies { head.add("Vary", "Accept-Encoding") }
  }

  /// To the same with a slash at its end; made of the decoded path, so that it leads nowhere else.
  private func redirect(_ head: RequestHead, _ bytes: Bytes) {
    var path = TargetPath(bytes: [], isDirectory: false)
    // It was decoded before.
    try? TargetPath.decode(head.target.of(bytes), into: &path)
    var location: [UInt8] = [UInt8(ascii: "/")]
    Listing.encode(Array(path.bytes.dropLast()), into: &location)
    location.append(UInt8(ascii: "/"))
    let target = head.target.of(bytes)
    if let query = target.firstIndex(of: UInt8(ascii: "?")) {
      for byte in target[query...].prefix(while: { $0 != UInt8(ascii: "#") }) {
        if byte < 0x80 { location.append(byte) } else { Listing.encode([byte], into: &location) }
      }
    }
    answer(301) { $0.add("Location", String(decoding: location, as: UTF8.self)) }
  }

  // MARK: Small answers

  /// Answers a request that cannot be made sense of, and closes.
  ///
  /// - Parameter received: What there is of its head, if that was not parsed.
  func refuse(_ status: Int, received: Bytes? = nil) {
    // That of an upload is known.
    var logged = reply.logged
    if let received, loop.accessLog != nil { logged = AccessLog.Request(received: received) }
    reply = Reply()
    reply.logged = logged
    upload = nil
    answer(status, keepsAlive: false)
  }

  /// Answers with a status, and a body that says it unless another is given.
  func answer(
    _ status: Int, keepsAlive: Bool? = nil, type: StaticString = "text/plain; charset=utf-8",
    body: [UInt8]? = nil, _ addFields: (ResponseHead) -> Void = { _ in }
  ) {
    if let keepsAlive { reply.keepsAlive = keepsAlive }
    reply.status = status
    let head = ResponseHead(status, date: loop.dateLine, to: loop.output)
    addFields(head)
    let hasBody = status != 204 && status != 304
    let body = hasBody ? body ?? Array((ResponseHead.text(of: status) + "\n").utf8) : []
    if hasBody {
      head.add("Content-Type", type)
      head.add(contentLength: Int64(body.count))
    }
    head.end(keepsAlive: reply.keepsAlive, isOld: reply.isOld)
    if hasBody && !reply.isHead {
      loop.output.append(body)
      reply.sent = Int64(body.count)
      loop.statistics.bytesSent += Int(reply.sent)
    }
    finishReply()
  }
}
