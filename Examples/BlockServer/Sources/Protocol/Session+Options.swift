// SPDX-License-Identifier: Apache-2.0
//
// The options, by which client and server agree before the first request. Part of Session.

extension Session {
  mutating func nextOption(_ input: UnsafeRawBufferPointer, _ consumed: inout Int) -> Event? {
    switch state {
    case .option:
      guard input.count >= NBD.optionHeaderSize else { return nil }
      guard input.number(UInt64.self, at: 0) == NBD.optionMagic else {
        return violation("an option without its magic number")
      }
      consumed += NBD.optionHeaderSize
      let option = input.number(UInt32.self, at: 8)
      let length = Int(input.number(UInt32.self, at: 12))
      optionCount += 1
      optionBytes += length
      guard optionCount <= Self.mostOptions, optionBytes <= Self.mostOptionBytes else {
        return violation("more options than anybody needs")
      }
      let rest = UnsafeRawBufferPointer(rebasing: input[NBD.optionHeaderSize...])
      if length > Self.largestOption {
        state = .skippingOption(option, remaining: length)
        return nextOption(rest, &consumed)
      }
      state = .optionData(option, length: length)
      return nextOption(rest, &consumed)
    case .optionData(let option, let length):
      guard input.count >= length else { return nil }
      consumed += length
      state = .option
      return answer(option, OptionReader(.init(rebasing: input[..<length])))
    case .skippingOption(let option, let remaining):
      let count = min(remaining, input.count)
      consumed += count
      guard count == remaining else {
        state = .skippingOption(option, remaining: remaining - count)
        return nil
      }
      state = .option
      if option == NBD.Option.exportName.rawValue {
        return violation("an export's name of more than \(Self.largestOption) bytes")
      }
      return reply(
        option, .tooBig, "an option has \(Self.largestOption) bytes at the most")
    default:
      preconditionFailure("not in the option phase")
    }
  }

  private mutating func answer(_ number: UInt32, _ data: OptionReader) -> Event {
    let option = NBD.Option(rawValue: number)
    // Without the fixed newstyle a client understands no answers, and has this one option.
    if !isFixed && option != .exportName {
      return violation("option \(number) without the fixed newstyle")
    }
    switch option {
    case .exportName: return chooseByName(data)
    case .abort:
      _ = reply(number, .ack)
      state = .ended
      return .end
    case .list: return list(data)
    case .info: return inform(.info, data)
    case .go: return inform(.go, data)
    case .structuredReply:
      guard data.isEmpty else { return reply(number, .invalid, "the option has no data") }
      isStructured = true
      return reply(number, .ack)
    case .listMetaContext: return metaContexts(.listMetaContext, data)
    case .setMetaContext: return metaContexts(.setMetaContext, data)
    case .startTLS: return reply(number, .unsupported, "this server has no TLS")
    case nil: return reply(number, .unsupported, "this server does not know option \(number)")
    }
  }

  // MARK: Each option

  private mutating func chooseByName(_ data: OptionReader) -> Event {
    guard let name = data.all.string, let index = export(named: name) else {
      return violation("there is no such export")
    }
    let export = exports[index]
    output.append(number: export.size)
    output.append(number: export.flags(structured: isStructured).rawValue)
    if sendsZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
    return enter(index)
  }

  private mutating func list(_ data: OptionReader) -> Event {
    guard data.isEmpty else {
      return reply(NBD.Option.list.rawValue, .invalid, "the option has no data")
    }
    for export in exports {
      begin(NBD.Option.list.rawValue, .server, length: 4 + export.name.utf8.count)
      output.append(number: UInt32(export.name.utf8.count))
      output.append(contentsOf: export.name.utf8)
    }
    return reply(NBD.Option.list.rawValue, .ack)
  }

  private mutating func inform(_ option: NBD.Option, _ data: OptionReader) -> Event {
    var data = data
    guard let length = data.number(UInt32.self), let bytes = data.bytes(Int(length)),
      let count = data.number(UInt16.self), data.remaining == 2 * Int(count)
    else {
      return reply(option.rawValue, .invalid, "lengths that do not fit the option's")
    }
    guard let name = bytes.string, name.utf8.count <= NBD.longestString,
      let index = export(named: name)
    else {
      return reply(option.rawValue, .unknown, "there is no such export")
    }
    var asked: Set<UInt16> = []
    while let item = data.number(UInt16.self) { asked.insert(item) }
    let export = exports[index]
    begin(option.rawValue, .info, length: 12)
    output.append(number: NBD.Info.export.rawValue)
    output.append(number: export.size)
    output.append(number: export.flags(structured: isStructured).rawValue)
    if asked.contains(NBD.Info.name.rawValue) {
      begin(option.rawValue, .info, length: 2 + export.name.utf8.count)
      output.append(number: NBD.Info.name.rawValue)
      output.append(contentsOf: export.name.utf8)
    }
    if asked.contains(NBD.Info.blockSize.rawValue) {
      begin(option.rawValue, .info, length: 14)
      output.append(number: NBD.Info.blockSize.rawValue)
      output.append(number: UInt32(1))
      output.append(number: export.preferredBlock)
      output.append(number: ExportDescription.largestPayload)
    }
    _ = reply(option.rawValue, .ack)
    return option == .go ? enter(index) : .answer
  }

  private mutating func metaContexts(_ option: NBD.Option, _ data: OptionReader) -> Event {
    // An earlier selection is void, also if this one fails.
    if option == .setMetaContext { contextExport = nil }
    guard isStructured else {
      return reply(option.rawValue, .invalid, "structured replies come first")
    }
    var data = data
    guard let length = data.number(UInt32.self), let bytes = data.bytes(Int(length)),
      let count = data.number(UInt32.self)
    else {
      return reply(option.rawValue, .invalid, "lengths that do not fit the option's")
    }
    var matches = option == .listMetaContext && count == 0
    for _ in 0..<count {
      guard let length = data.number(UInt32.self), let query = data.bytes(Int(length)) else {
        return reply(option.rawValue, .invalid, "lengths that do not fit the option's")
      }
      // Other namespaces, and leaves that are not known, are passed over.
      let text = query.string
      if text == NBD.allocationContext || text == "base:" && option == .listMetaContext {
        matches = true
      }
    }
    guard data.isEmpty else {
      return reply(option.rawValue, .invalid, "lengths that do not fit the option's")
    }
    guard let name = bytes.string, let index = export(named: name) else {
      return reply(option.rawValue, .unknown, "there is no such export")
    }
    if matches {
      let isSet = option == .setMetaContext
      if isSet { contextExport = index }
      begin(option.rawValue, .metaContext, length: 4 + NBD.allocationContext.utf8.count)
      output.append(number: isSet ? NBD.allocationContextID : 0)
      output.append(contentsOf: NBD.allocationContext.utf8)
    }
    return reply(option.rawValue, .ack)
  }

  // MARK: Parts

  /// The index of the export with a name. The empty name means the first.
  private func export(named name: String) -> Int? {
    name.isEmpty && !exports.isEmpty ? 0 : exports.firstIndex { $0.name == name }
  }

  private mutating func begin(_ option: UInt32, _ type: NBD.OptionReply, length: Int) {
    output.append(number: NBD.optionReplyMagic)
    output.append(number: option)
    output.append(number: type.rawValue)
    output.append(number: UInt32(length))
  }

  private mutating func reply(
    _ option: UInt32, _ type: NBD.OptionReply, _ message: String = ""
  ) -> Event {
    begin(option, type, length: message.utf8.count)
    output.append(contentsOf: message.utf8)
    return .answer
  }
}

/// A reader of an option's data. Its methods return `nil` if there is not enough of it.
struct OptionReader {
  private let data: UnsafeRawBufferPointer
  private var position = 0

  init(_ data: UnsafeRawBufferPointer) { self.data = data }

  var all: UnsafeRawBufferPointer { data }
  var remaining: Int { data.count - position }
  var isEmpty: Bool { remaining == 0 }

  mutating func number<Number: FixedWidthInteger>(_ type: Number.Type) -> Number? {
    guard remaining >= MemoryLayout<Number>.size else { return nil }
    defer { position += MemoryLayout<Number>.size }
    return data.number(at: position)
  }

  mutating func bytes(_ count: Int) -> UnsafeRawBufferPointer? {
    guard remaining >= count else { return nil }
    defer { position += count }
    return .init(rebasing: data[position..<position + count])
  }
}

extension UnsafeRawBufferPointer {
  /// The bytes as text; `nil` if they are not UTF-8.
  fileprivate var string: String? { String(validating: self, as: UTF8.self) }
}
