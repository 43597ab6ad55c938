// SPDX-License-Identifier: Apache-2.0
//
// One client's side of the protocol, as a state machine: bytes go in, events come out. It knows no
// sockets and no files, and keeps nothing of its input but numbers, so that whatever comes costs no
// memory.

/// What a client and this server have agreed on, and where in the conversation they are.
///
/// The handshake is the fixed newstyle one; then come options (`Session+Options.swift`), then, once
/// an export has been chosen, requests.
struct Session {
  enum Event: Equatable {
    /// `output` has an answer to send.
    case answer
    /// The client has chosen an export; what follows are requests. `output` has the answer.
    case enter(export: Int)
    /// A request that the export can do. After a write, its payload follows.
    case request(Request)
    /// A request that is answered with an error. If it is a write, the payload is passed over.
    case refused(Request, NBD.ErrorCode, message: String)
    /// So many of the next bytes belong to the payload of the last write. They are not consumed:
    /// say with `received(payload:)` how many were taken.
    case payload(Int)
    /// The client wants to end, and is owed what `output` has, and the replies in flight.
    case end
    /// The client does not keep to the protocol so far that one cannot go on.
    case violation(String)
  }

  /// Longer options are passed over and refused.
  static let largestOption = 32 << 10
  /// How many options there may be, and how many bytes they may have: enough for every client that
  /// means it, few enough that one that does not is gone soon.
  static let mostOptions = 1024
  static let mostOptionBytes = 4 << 20

  enum State: Equatable {
    case clientFlags
    case option
    case optionData(UInt32, length: Int)
    /// An option too long to look at.
    case passingOption(UInt32, remaining: Int)
    case request
    case payload(remaining: Int)
    /// The payload of a write that was refused.
    case passingPayload(remaining: Int)
    case ended
  }

  let exports: [ExportDescription]
  var state = State.clientFlags
  /// What is to be sent to the client: the caller sends and empties it.
  var output: [UInt8] = []
  var sendsZeroes = true
  var isFixed = false
  var optionCount = 0
  var optionBytes = 0
  private(set) var chosen: ExportDescription?
  /// Whether structured replies were negotiated.
  var isStructured = false
  /// For which export `base:allocation` was selected.
  var contextExport: Int?
  /// Whether it was for the one that was chosen.
  private(set) var hasContext = false

  init(exports: [ExportDescription]) {
    self.exports = exports
    output.append(number: NBD.initialMagic)
    output.append(number: NBD.optionMagic)
    output.append(number: UInt16(NBD.HandshakeFlags([.fixedNewstyle, .noZeroes]).rawValue))
  }

  /// The next event.
  ///
  /// - Parameters:
  ///   - input: the bytes that have come and were not consumed.
  ///   - consumed: how many of them the event took, to be added to.
  /// - Returns: `nil`: more bytes are needed (never more than `largestOption`).
  @inline(__always)
  mutating func next(_ input: UnsafeRawBufferPointer, consumed: inout Int) -> Event? {
    switch state {
    case .request:
      return nextRequest(input, &consumed)
    case .payload(let remaining):
      return input.isEmpty ? nil : .payload(min(remaining, input.count))
    default:
      return nextOther(input, &consumed)
    }
  }

  /// So many bytes of payload have been taken.
  @inline(__always)
  mutating func received(payload count: Int) {
    guard case .payload(let remaining) = state else {
      preconditionFailure("no payload was expected")
    }
    precondition(count <= remaining)
    state = count == remaining ? .request : .payload(remaining: remaining - count)
  }

  /// How much payload is still to come, if anything.
  @inline(__always)
  var payloadRemaining: Int {
    if case .payload(let remaining) = state { remaining } else { 0 }
  }

  private mutating func nextOther(
    _ input: UnsafeRawBufferPointer, _ consumed: inout Int
  ) -> Event? {
    switch state {
    case .clientFlags:
      guard input.count >= 4 else { return nil }
      consumed += 4
      let flags = NBD.HandshakeFlags(rawValue: input.number(at: 0))
      guard flags.isSubset(of: [.fixedNewstyle, .noZeroes]) else {
        return violation("unknown client flags \(flags.rawValue)")
      }
      isFixed = flags.contains(.fixedNewstyle)
      sendsZeroes = !flags.contains(.noZeroes)
      state = .option
      return next(.init(rebasing: input[4...]), consumed: &consumed)
    case .option, .optionData, .passingOption:
      return nextOption(input, &consumed)
    case .passingPayload(let remaining):
      guard !input.isEmpty else { return nil }
      let count = min(remaining, input.count)
      consumed += count
      guard count == remaining else {
        state = .passingPayload(remaining: remaining - count)
        return nil
      }
      state = .request
      return nextRequest(.init(rebasing: input[count...]), &consumed)
    case .ended:
      consumed += input.count
      return nil
    case .request, .payload:
      preconditionFailure("those are next()'s")
    }
  }

  /// The client has chosen: what follows are requests.
  mutating func enter(_ export: Int) -> Event {
    chosen = exports[export]
    hasContext = isStructured && contextExport == export
    state = .request
    return .enter(export: export)
  }

  mutating func violation(_ text: String) -> Event {
    state = .ended
    return .violation(text)
  }

  @inline(__always)
  private mutating func nextRequest(
    _ input: UnsafeRawBufferPointer, _ consumed: inout Int
  ) -> Event? {
    guard input.count >= NBD.requestSize else { return nil }
    guard input.number(UInt32.self, at: 0) == NBD.requestMagic else {
      return violation("a request without its magic number")
    }
    consumed += NBD.requestSize
    let type = input.number(UInt16.self, at: 6)
    let command = NBD.Command(rawValue: type)
    // What is not known is refused like what cannot be done; it has no payload.
    let request = Request(
      command: command ?? .cache, flags: NBD.CommandFlags(rawValue: input.number(at: 4)),
      cookie: input.number(at: 8), offset: input.number(at: 16), length: input.number(at: 24))
    guard let command, let chosen else {
      return .refused(request, .invalid, message: "there is no command \(type)")
    }
    if command == .disconnect {
      state = .ended
      return .end
    }
    if let (error, message) = request.refusal(
      by: chosen, structured: isStructured, hasContext: hasContext)
    {
      if command == .write && request.length > 0 {
        state = .passingPayload(remaining: Int(request.length))
      }
      return .refused(request, error, message: "\(message)")
    }
    if command == .write && request.length > 0 {
      state = .payload(remaining: Int(request.length))
    }
    return .request(request)
  }
}
