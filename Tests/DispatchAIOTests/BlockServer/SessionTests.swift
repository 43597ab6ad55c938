// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import BlockServer

/// The protocol's state machine, without sockets.
final class SessionTests: XCTestCase {
  static let exports = [
    ExportDescription(name: "disk", size: 1 << 30, isReadOnly: false),
    ExportDescription(name: "still", size: 1_000_001, isReadOnly: true),
  ]

  /// A session with what it said and did.
  struct Conversation {
    var session = Session(exports: SessionTests.exports)
    /// All that was sent to the client.
    var output: [UInt8] = []
    var events: [Session.Event] = []
    /// How many bytes of payload were taken.
    var payload = 0
    var unread: [UInt8] = []

    init() { takeOutput() }

    private mutating func takeOutput() {
      output += session.output
      session.output.removeAll()
    }

    /// Gives it bytes, in pieces of at most so many.
    mutating func send(_ bytes: [UInt8], most: Int = .max) {
      var bytes = bytes[...]
      while !bytes.isEmpty {
        unread += bytes.prefix(most)
        bytes = bytes.dropFirst(most)
        read()
      }
    }

    private mutating func read() {
      while true {
        var consumed = 0
        let before = unread.count
        let event = unread.withUnsafeBytes { session.next($0, consumed: &consumed) }
        unread.removeFirst(consumed)
        precondition(consumed <= before)
        takeOutput()
        switch event {
        case nil: return
        case .payload(let count):
          precondition(count > 0 && count <= unread.count)
          unread.removeFirst(count)
          session.received(payload: count)
          payload += count
        case .violation(let text):
          events.append(.violation(text))
          return
        case .some(let event): events.append(event)
        }
      }
    }
  }

  /// A session that has chosen an export.
  static func entered(_ export: String = "disk", structured: Bool = true, context: Bool = true)
    -> Conversation
  {
    var conversation = Conversation()
    conversation.send(Message.clientFlags())
    if structured { conversation.send(Message.option(8)) }
    if context {
      conversation.send(Message.option(10, Message.queries(export, ["base:allocation"])))
    }
    conversation.send(Message.option(7, Message.info(export, [3])))
    conversation.events = []
    conversation.output = []
    return conversation
  }

  // MARK: The handshake

  func testTheServerGreetsFirst() {
    let greeting = Conversation().output
    XCTAssertEqual(greeting, Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
  }

  func testUnknownClientFlagsEndTheSession() {
    var conversation = Conversation()
    conversation.send(Message.clientFlags(4))
    guard case .violation = conversation.events.first else { return XCTFail() }
  }

  func testExportNameWithAndWithoutZeroes() {
    for (flags, zeroes) in [(UInt32(1), 124), (3, 0), (0, 124)] {
      var conversation = Conversation()
      conversation.send(Message.clientFlags(flags))
      conversation.output = []
      conversation.send(Message.option(1, Array("still".utf8)))
      XCTAssertEqual(conversation.events, [.enter(export: 1)])
      XCTAssertEqual(conversation.output.count, 10 + zeroes)
      XCTAssertEqual(Array(conversation.output[..<8]), Message.bytes(UInt64(1_000_001)))
      // Has flags, read-only, flush, FUA, multi-conn, cache.
      XCTAssertEqual(
        Array(conversation.output[8..<10]), Message.bytes(UInt16(0b101_0000_1111 & ~0b0)))
    }
  }

  func testTheEmptyNameIsTheFirstExport() {
    var conversation = Conversation()
    conversation.send(Message.clientFlags() + Message.option(7, Message.info("", [])))
    XCTAssertEqual(conversation.events, [.enter(export: 0)])
  }

  func testAWrongExportNameEndsTheSession() {
    var conversation = Conversation()
    conversation.send(Message.clientFlags() + Message.option(1, Array("none".utf8)))
    guard case .violation = conversation.events.last else { return XCTFail() }
  }

  /// Each option, and the kind of the last reply to it.
  func testOptions() throws {
    let long = [UInt8](repeating: 0x61, count: Session.largestOption + 1)
    let table: [(String, UInt32, [UInt8], NBD.OptionReply, Int)] = [
      ("list", 3, [], .ack, 3),
      ("list with data", 3, [1], .invalid, 1),
      ("STARTTLS", 5, [], .unsupported, 1),
      ("PEEK_EXPORT", 4, [], .unsupported, 1),
      ("extended headers", 11, [], .unsupported, 1),
      ("unknown", 0xffff_ffff, [1, 2, 3], .unsupported, 1),
      ("info", 6, Message.info("disk", []), .ack, 2),
      ("info with everything", 6, Message.info("disk", [0, 1, 2, 3, 77]), .ack, 4),
      ("info of none", 6, Message.info("none", []), .unknown, 1),
      ("info, name too long for the option", 6, Message.bytes(UInt32(9)) + [1], .invalid, 1),
      ("info, length overflow", 6, Message.bytes(UInt32.max) + [0, 0], .invalid, 1),
      ("info, more requests than said", 6, Message.info("disk", [3]) + [0], .invalid, 1),
      ("info, not a name", 6, Message.info(raw: [0xff, 0xfe], []), .unknown, 1),
      ("info of nothing", 6, [], .invalid, 1),
      ("go of none", 7, Message.info("none", []), .unknown, 1),
      ("structured", 8, [], .ack, 1),
      ("structured with data", 8, [0], .invalid, 1),
      ("list contexts", 9, Message.queries("disk", []), .ack, 2),
      ("list contexts, base:", 9, Message.queries("disk", ["base:"]), .ack, 2),
      ("list contexts, other", 9, Message.queries("disk", ["x-other:1"]), .ack, 1),
      ("list contexts of none", 9, Message.queries("none", []), .unknown, 1),
      ("set contexts", 10, Message.queries("disk", ["base:allocation"]), .ack, 2),
      ("set no contexts", 10, Message.queries("disk", []), .ack, 1),
      ("set a wildcard", 10, Message.queries("disk", ["base:"]), .ack, 1),
      (
        "set contexts, more queries than there are", 10,
        Message.queries("disk", ["base:allocation"], count: 0xffff_ffff), .invalid, 1
      ),
      ("set contexts, nothing", 10, [], .invalid, 1),
      ("too long", 6, long, .tooBig, 1),
      ("too long and unknown", 99, long, .tooBig, 1),
    ]
    for (name, option, data, expected, count) in table {
      var conversation = Conversation()
      conversation.send(Message.clientFlags())
      if option >= 9 { conversation.send(Message.option(8)) }
      conversation.output = []
      conversation.events = []
      conversation.send(Message.option(option, data))
      XCTAssertEqual(conversation.events.last, .answer, name)
      let replies = try Message.optionReplies(conversation.output)
      XCTAssertTrue(replies.allSatisfy { $0.option == option }, name)
      XCTAssertEqual(replies.last?.type, expected.rawValue, name)
      XCTAssertEqual(replies.count, count, name)
      // And the session goes on.
      conversation.send(Message.option(7, Message.info("disk", [])))
      XCTAssertEqual(conversation.events.last, .enter(export: 0), name)
    }
  }

  func testContextsNeedStructuredReplies() throws {
    var conversation = Conversation()
    conversation.send(Message.clientFlags())
    conversation.output = []
    conversation.send(Message.option(10, Message.queries("disk", ["base:allocation"])))
    XCTAssertEqual(
      try Message.optionReplies(conversation.output).map(\.type),
      [NBD.OptionReply.invalid.rawValue])
  }

  func testAContextIsOfTheExportItWasSelectedFor() {
    for (selected, expected) in [("disk", true), ("still", false)] {
      var conversation = Conversation()
      conversation.send(Message.clientFlags() + Message.option(8))
      conversation.send(Message.option(10, Message.queries(selected, ["base:allocation"])))
      conversation.send(Message.option(7, Message.info("disk", [])))
      conversation.events = []
      conversation.send(Message.request(7, offset: 0, length: 4096))
      switch conversation.events.first {
      case .request: XCTAssertTrue(expected)
      case .refused: XCTAssertFalse(expected)
      default: XCTFail("\(conversation.events)")
      }
    }
  }

  func testAbortIsAcknowledged() throws {
    var conversation = Conversation()
    conversation.send(Message.clientFlags())
    conversation.output = []
    conversation.send(Message.option(2) + [1, 2, 3])
    XCTAssertEqual(conversation.events, [.end])
    XCTAssertEqual(
      try Message.optionReplies(conversation.output).map(\.type), [NBD.OptionReply.ack.rawValue])
  }

  func testFloodsOfOptionsEnd() {
    var many = Conversation()
    many.send(Message.clientFlags())
    for _ in 0...Session.mostOptions { many.send(Message.option(77)) }
    guard case .violation = many.events.last else { return XCTFail("many") }
    XCTAssertEqual(many.events.count, Session.mostOptions + 1)

    var large = Conversation()
    large.send(Message.clientFlags() + Message.optionHeader(77, length: .max))
    guard case .violation = large.events.last else { return XCTFail("large") }
  }

  // MARK: Requests

  func testRequestsThatAreRefused() {
    let size: UInt64 = 1 << 30
    let table: [(String, [UInt8], NBD.ErrorCode)] = [
      ("unknown command", Message.request(99, offset: 0, length: 1), .invalid),
      ("read beyond the end", Message.request(0, offset: size - 1, length: 2), .invalid),
      ("read from beyond", Message.request(0, offset: size + 1, length: 0), .invalid),
      ("offset overflow", Message.request(0, offset: .max, length: .max), .invalid),
      ("read too large", Message.request(0, offset: 0, length: (32 << 20) + 1), .overflow),
      ("unknown flag", Message.request(0, flags: 0x8000, offset: 0, length: 1), .invalid),
      ("DF on a write", Message.request(1, flags: 4, offset: 0, length: 0), .invalid),
      ("NO_HOLE on a trim", Message.request(4, flags: 2, offset: 0, length: 1), .invalid),
      ("flush of a part", Message.request(3, offset: 0, length: 1), .invalid),
      ("zeroes beyond the end", Message.request(6, offset: size, length: 1), .noSpace),
      ("trim beyond the end", Message.request(4, offset: size, length: 1), .invalid),
      ("status of nothing", Message.request(7, offset: 0, length: 0), .invalid),
      ("cache beyond the end", Message.request(5, offset: size, length: 1), .invalid),
    ]
    for (name, bytes, expected) in table {
      var conversation = Self.entered()
      conversation.send(bytes)
      guard case .refused(let request, let error, _) = conversation.events.first else {
        XCTFail("\(name): \(conversation.events)")
        continue
      }
      XCTAssertEqual(error, expected, name)
      XCTAssertEqual(request.cookie, Message.cookie, name)
      conversation.send(Message.request(0, offset: 0, length: 1))
      guard case .request = conversation.events.last else { return XCTFail(name) }
    }
  }

  func testFlagsNeedWhatWasNegotiated() {
    var simple = Self.entered(structured: false, context: false)
    simple.send(Message.request(0, flags: 4, offset: 0, length: 1))
    guard case .refused(_, .invalid, _) = simple.events.first else { return XCTFail("DF") }
    simple.send(Message.request(7, offset: 0, length: 1))
    guard case .refused(_, .invalid, _) = simple.events.last else { return XCTFail("status") }
  }

  func testAReadOnlyExportRefusesToWrite() {
    for command in [UInt16(1), 4, 6] {
      var conversation = Self.entered("still")
      conversation.send(Message.request(command, offset: 0, length: 512))
      guard case .refused(_, .notPermitted, _) = conversation.events.first else {
        return XCTFail("\(command)")
      }
    }
  }

  func testPayloadsGoWhereTheyBelong() {
    var conversation = Self.entered()
    conversation.send(Message.request(1, offset: 0, length: 1000))
    conversation.send([UInt8](repeating: 1, count: 1000), most: 77)
    // One that is refused: its payload is passed over.
    conversation.send(
      Message.request(1, offset: 1 << 30, length: 5000) + [UInt8](repeating: 2, count: 5000)
        + Message.request(2, offset: 0, length: 0), most: 99)
    XCTAssertEqual(conversation.payload, 1000)
    XCTAssertEqual(conversation.events.count, 3)
    XCTAssertEqual(conversation.events.last, .end)
  }

  func testAWrongMagicNumberEndsTheSession() {
    var request = Message.request(0, offset: 0, length: 1)
    request[0] ^= 1
    var conversation = Self.entered()
    conversation.send(request)
    guard case .violation = conversation.events.first else { return XCTFail() }
    var option = Message.option(3)
    option[7] ^= 1
    conversation = Conversation()
    conversation.send(Message.clientFlags() + option)
    guard case .violation = conversation.events.first else { return XCTFail() }
  }

  // MARK: Properties

  /// However the bytes arrive, they mean the same.
  func testPiecesDoNotMatter() {
    Seeds.run(default: 200) { seed in
      var generator = SeededGenerator(seed: seed)
      let bytes = Message.conversation(&generator)
      var whole = Conversation()
      whole.send(bytes)
      var pieces = Conversation()
      pieces.send(bytes, most: Int.random(in: 1...50, using: &generator))
      XCTAssertEqual(pieces.events, whole.events, Seeds.replay(seed))
      XCTAssertEqual(pieces.output, whole.output, Seeds.replay(seed))
      XCTAssertEqual(pieces.payload, whole.payload, Seeds.replay(seed))
    }
  }

  /// Mutated sessions: whatever comes, the machine does not trap, does not ask for more than an
  /// option's length, and says no more than the client could have asked for.
  func testMutatedSessions() {
    Seeds.run(default: 3000) { seed in
      var generator = SeededGenerator(seed: seed)
      let bytes = Message.mutated(Message.conversation(&generator), &generator)
      var conversation = Conversation()
      conversation.send(bytes, most: Int.random(in: 1...4000, using: &generator))
      XCTAssertLessThanOrEqual(
        conversation.unread.count, Session.largestOption + NBD.optionHeaderSize,
        Seeds.replay(seed))
      XCTAssertLessThan(conversation.output.count, 100 * bytes.count + 1000, Seeds.replay(seed))
      for event in conversation.events {
        guard case .request(let request) = event else { continue }
        let size = conversation.session.chosen?.size ?? 0
        XCTAssertLessThanOrEqual(request.offset, size, Seeds.replay(seed))
        XCTAssertLessThanOrEqual(
          UInt64(request.length), size - request.offset, Seeds.replay(seed))
      }
    }
  }
}
