// SPDX-License-Identifier: Apache-2.0
//
// The protocol with one client, as a state machine: from bytes to events. It knows no sockets and
// no files, and keeps only numbers of its input, so that no input costs memory.

/// The conversation with a client: its state, and what was agreed on.
///
/// The handshake is the fixed newstyle one; then come options (`Session+Options.swift`), then, once
/// an export has been chosen, requests.
struct Session {
  enum Event: Equatable {
    /// An answer, which `output` has to send.
    case answer
    /// The client has chosen an export; what follows are requests. `output` has the answer.
    case enter(export: Int)
    /// A request that the export can do. After a write, its payload follows.
    case request(Request)
    /// A request that is answered with an error. If it is a write, its payload is skipped.
    case refused(Request, NBD.ErrorCode, message: String)
    /// The number of the next bytes that belong to the payload of the last write. They are not
    /// consumed: `received(payload:)` says how many were taken.
    case payload(Int)
    /// The end that the client has asked for. `output` and the replies in flight are still sent.
    case end
    /// A violation of the protocol after which the connection has to be closed.
    case violation(String)
  }

  /// The most bytes of an option. A longer one is skipped and refused.
  static let largestOption = 32 << 10
  /// The most options, and the most bytes of them together: more than any client needs, so few that
  /// one that never chooses an export is closed soon.
  static let mostOptions = 1024
  static let mostOptionBytes = 4 << 20

  enum State: Equatable {
    case clientFlags
    case option
    case optionData(UInt32, length: Int)
    /// An option that is too long, being skipped.
    case skippingOption(UInt32, remaining: Int)
    case request
    case payload(remaining: Int)
    /// The payload of a refused write, being skipped.
    case skippingPayload(remaining: Int)
    case ended
  }

  let exports: [ExportDescription]
  var state = State.clientFlags
  /// The bytes to send to the client. The caller sends and empties it.
  var output: [UInt8] = []
  var sendsZeroes = true
  var isFixed = false
  var optionCount = 0
  var optionBytes = 0
  private(set) var chosen: ExportDescription?
  /// Whether structured replies were negotiated.
  var isStructured = false
  /// The export that `base:allocation` was selected for.
  var contextExport: Int?
  /// Whether that is the export that was chosen.
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
  ///   - input: the bytes that were received and not consumed.
  ///   - consumed: is increased by the number of bytes that the event consumes.
  /// - Returns: the event; `nil` if it needs more bytes (never more than `largestOption`).
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

  /// Notes that bytes of payload were taken.
  @inline(__always)
  mutating func received(payload count: Int) {
    guard case .payload(let remaining) = state else {
      preconditionFailure("no payload was expected")
    }
    precondition(count <= remaining)
    state = count == remaining ? .request : .payload(remaining: remaining - count)
  }

  /// The number of bytes of payload still expected.
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
    case .option, .optionData, .skippingOption:
      return nextOption(input, &consumed)
    case .skippingPayload(let remaining):
      guard !input.isEmpty else { return nil }
      let count = min(remaining, input.count)
      consumed += count
      guard count == remaining else {
        state = .skippingPayload(remaining: remaining - count)
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

  /// Enters the transmission phase, in which the client makes requests.
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
    // An unknown command is refused; it has no payload.
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
        state = .skippingPayload(remaining: Int(request.length))
      }
      return .refused(request, error, message: "\(message)")
    }
    if command == .write && request.length > 0 {
      state = .payload(remaining: Int(request.length))
    }
    return .request(request)
  }
}
