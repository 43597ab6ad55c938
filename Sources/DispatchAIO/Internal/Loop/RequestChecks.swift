// SPDX-License-Identifier: Apache-2.0
//
// The checks of a request that do not need the kernel, which would accept a misaligned request and
// answer EINVAL later, without saying what was wrong.

extension Operation {
  /// Checks a request on a file.
  /// - Returns: The number of bytes that the operation transfers; 0 for a sync.
  /// - Throws: ``AIOError``, which refuses the request.
  @inline(__always)
  func check(
    _ file: OpenFile, _ offset: Int64, _ options: RequestOptions = []
  ) throws(AIOError) -> Int {
    switch self {
    case .fsync, .fdatasync:
      return 0
    case .read(let memory):
      let length = try check(memory, file, offset, options)
      guard file.traits.isReadable else { throw .notReadable(.init(self, file, offset, length)) }
      return length
    case .write(let memory):
      let length = try check(memory, file, offset, options)
      guard file.traits.isWritable else {
        throw .notWritable(.init(self, file, offset, length, options))
      }
      if !options.isDisjoint(with: [.atomic, .append]) {
        try check(memory, file, offset, length, options)
      }
      return length
    }
  }

  /// Checks a write whose options the file may not have.
  @inline(never)
  private func check(
    _ memory: Memory, _ file: OpenFile, _ offset: Int64, _ length: Int, _ options: RequestOptions
  ) throws(AIOError) {
    if options.contains(.append) { return try checkAppend(file, length, options) }
    try checkAtomic(memory, file, offset, length, options)
  }

  /// Checks a write that must not be torn: the kernel would refuse it as well, with EINVAL.
  private func checkAtomic(
    _ memory: Memory, _ file: OpenFile, _ offset: Int64, _ length: Int, _ options: RequestOptions
  ) throws(AIOError) {
    let subject = AIOError.Subject(self, file, offset, length, options)
    guard let unit = file.atomicWriteUnit else {
      throw AIOError(
        .notSupported, subject,
        .text(
          file.traits.isDirect
            ? """
            the disk, the file system or the kernel cannot write untorn (AIOFile.atomicWriteUnit is \
            nil); write without .atomic, and tell a torn write by a checksum
            """
            : "only a direct file is written untorn; open it with caching: .direct"))
    }
    if memory.elements != 1 {
      throw AIOError(
        .misaligned, subject,
        .text("an untorn write is of one buffer; \(memory.elements) were given"))
    }
    if !unit.contains(length) || length & (length - 1) != 0 {
      throw AIOError(
        .misaligned, subject,
        .text(
          """
          an untorn write has a power of two of bytes, from \(unit.lowerBound) to \
          \(unit.upperBound) (AIOFile.atomicWriteUnit); \(length) were given
          """))
    }
    if offset % Int64(length) != 0 {
      throw AIOError(
        .misaligned, subject,
        .text("the offset of an untorn write is a multiple of its length; \(offset) is not"))
    }
  }

  private func checkAppend(
    _ file: OpenFile, _ length: Int, _ options: RequestOptions
  ) throws(AIOError) {
    if file.traits.isBlockDevice {
      throw AIOError(
        .unsupportedFile, .init(self, file, 0, length, options),
        .text("it is a block device, whose end is fixed; write at an offset"))
    }
    if options.contains(.atomic) {
      throw AIOError(
        .notSupported, .init(self, file, 0, length, options),
        .text("an append cannot be untorn, as its place is not known; write at an offset"))
    }
  }

  @inline(__always)
  private func check(
    _ memory: Memory, _ file: OpenFile, _ offset: Int64, _ options: RequestOptions
  ) throws(AIOError) -> Int {
    let elements = memory.elements
    guard elements <= SubmissionBatch.maximumElements else {
      throw AIOError(
        .tooManyBuffers, .init(self, file, offset, nil, options),
        .text(
          """
          \(elements) buffers were given; one request takes at most \
          \(SubmissionBatch.maximumElements): split it
          """))
    }
    let alignment = options.contains(.anyRange) ? .none : file.traits.alignment
    let lengthMask = UInt(bitPattern: alignment.offset &- 1)
    let memoryMask = UInt(bitPattern: alignment.memory &- 1)
    // Everything that must be aligned is collected in one word each, so that a good request takes
    // one test.
    var length = 0
    var lengths: UInt = 0
    var addresses: UInt = 0
    for index in 0..<elements {
      let bytes = unsafe memory[index]
      let (sum, overflow) = length.addingReportingOverflow(bytes.count)
      guard !overflow else { throw tooLarge(file, offset, options) }
      length = sum
      lengths |= UInt(bitPattern: bytes.count)
      if bytes.count > 0 { addresses |= UInt(bitPattern: bytes.baseAddress) }
    }
    guard offset >= 0 else { throw .negative(.init(self, file, offset, length)) }
    guard offset <= Int64.max - Int64(length) else {
      throw .pastLargestOffset(.init(self, file, offset, length))
    }
    if (UInt(bitPattern: Int(offset)) | lengths) & lengthMask | addresses & memoryMask != 0
      || !alignment.hasMasks
    {
      if let error = misaligned(memory, file, offset, length, options) { throw error }
    }
    return length
  }

  private func tooLarge(
    _ file: OpenFile, _ offset: Int64, _ options: RequestOptions
  ) -> AIOError {
    AIOError(
      .tooLarge, .init(self, file, offset, .max, options),
      .text("the buffers have more bytes together than a number can say: use fewer"))
  }

  /// Makes the error that names what is not aligned; `nil` if everything is.
  private func misaligned(
    _ memory: Memory, _ file: OpenFile, _ offset: Int64, _ length: Int, _ options: RequestOptions
  ) -> AIOError? {
    let subject = AIOError.Subject(self, file, offset, length, options)
    let alignment = file.traits.alignment
    func error(_ what: String, _ needed: Int) -> AIOError {
      AIOError(.misaligned, subject, .misaligned(what, needed: needed))
    }
    if offset % Int64(alignment.offset) != 0 {
      return error("offset \(offset)", alignment.offset)
    }
    for index in 0..<memory.elements {
      let bytes = unsafe memory[index]
      let place = memory.isVector ? " of buffer \(index)" : ""
      if bytes.count % alignment.offset != 0 {
        return error("length \(bytes.count)" + place, alignment.offset)
      }
      let address = UInt(bitPattern: bytes.baseAddress)
      if bytes.count > 0, address % UInt(alignment.memory) != 0 {
        return error("memory address 0x\(String(address, radix: 16))" + place, alignment.memory)
      }
    }
    return nil
  }
}

extension AIOError.Subject {
  init(
    _ operation: Operation, _ file: OpenFile, _ offset: Int64, _ length: Int?,
    _ options: RequestOptions = []
  ) {
    switch operation {
    case .read: self.init(operation: .read, offset: offset, length: length)
    case .write where options.contains(.append): self.init(operation: .append, length: length)
    case .write: self.init(operation: .write, offset: offset, length: length)
    case .fsync: self.init(operation: .fsync)
    case .fdatasync: self.init(operation: .fdatasync)
    }
    isDurable = options.isDurable || operation.verb == .write && file.traits.syncsWrites
    path = file.path
    descriptor = file.descriptor
  }
}

/// Refusals that are made in more than one place.
extension AIOError {
  static func fileClosed(_ subject: Subject) -> AIOError {
    AIOError(
      .fileClosed, subject, .text("the file has been closed; open it again to go on"))
  }

  static func contextClosed(_ subject: Subject) -> AIOError {
    AIOError(
      .contextClosed, subject,
      .text("the context has been closed and takes no more requests; make a new one to go on"))
  }

  static func forked(_ subject: Subject) -> AIOError {
    AIOError(
      .forked, subject,
      .text(
        """
        this process was forked off the one that made the context, and a kernel AIO context is \
        not inherited; exec, or fork before the first context is made
        """))
  }

  static func negative(_ subject: Subject) -> AIOError {
    AIOError(.invalidOffset, subject, .text("an offset must be 0 or more"))
  }

  static func pastLargestOffset(_ subject: Subject) -> AIOError {
    AIOError(
      .invalidOffset, subject,
      .text(
        """
        the end of the request is past the largest offset a file can have (2^63 - 1); a smaller \
        offset or length is needed
        """))
  }

  static func notReadable(_ subject: Subject) -> AIOError {
    AIOError(
      .wrongAccessMode, subject,
      .text("the file is not open for reading; open it with .readOnly or .readWrite"))
  }

  static func notWritable(_ subject: Subject) -> AIOError {
    AIOError(
      .wrongAccessMode, subject,
      .text("the file is not open for writing; open it with .writeOnly or .readWrite"))
  }
}
