// SPDX-License-Identifier: Apache-2.0
//
// A file, or a part of it, to a socket.

internal import CKernel
internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

extension AIOContext {
  /// Sends a part of a file to a socket, behind a header. May be called from any thread, and never
  /// blocks. Corresponds to `sendfile(2)` for what the page cache has, and to a read and
  /// `sendmsg(2)` for the rest and for small parts, which are cheaper to copy.
  ///
  /// The call takes the place of a read, of sending what was read, and of waiting for the socket
  /// where it takes no more: all of them happen in the ring, and the queue waits neither for the
  /// disk nor for the peer. The header and the beginning of the file share a packet.
  ///
  /// - A direct file is read past the page cache, a buffered or automatic one from it where the
  ///   bytes are there. Nothing needs to be aligned.
  /// - A send needs up to 128 KiB of memory while it reads from the disk, and none while it sends
  ///   from the page cache. It reads no further before the socket has taken that.
  /// - Bytes that others write to the file meanwhile are sent as they were or as they are, in any
  ///   mixture. What the page cache sends is the page itself, also while the peer has not taken it.
  /// - A context that closes waits for what is being read; the send then ends with
  ///   ``AIOError/Code/contextClosed``. A file that is closed stays open until the send has ended.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes to send, 0 or more; 0 sends the header alone.
  ///   - socket: The descriptor of a non-blocking stream socket. It must stay open until the
  ///     completion handler runs, and nothing else may be sent to it before: a second send to it is
  ///     refused. It may have sources, and may be received from.
  ///   - header: Bytes to send before those of the file.
  ///   - completion: Called once, on the context's ``queue``, never inside this call: with the
  ///     number of bytes of the file that were sent, which is `count`, fewer only if the file ends
  ///     before (if it ends at `offset`, the header is not sent, either). Or with the error, for
  ///     example `EPIPE`, ``AIOError/Code/cancelled``, or ``AIOError/Code/exists`` for a second
  ///     send to the socket; ``AIOError/transferred`` is then the number of bytes of the file that
  ///     the socket has taken. After a short result or an error the peer has a part of the message,
  ///     unless ``AIOSend/bytesSent`` is 0, and the connection is of no more use.
  /// - Returns: The send, for ``AIOSend/cancel()``.
  /// - Throws: ``AIOError``, with nothing sent and the completion handler not called:
  ///   ``AIOError/Code/invalidOffset``, also for a negative count,
  ///   ``AIOError/Code/wrongAccessMode`` for a file that is not open for reading or a socket that
  ///   is blocking, ``AIOError/Code/unsupportedFile`` for a descriptor that is no stream socket,
  ///   ``AIOError/Code/fileClosed``, ``AIOError/Code/contextClosed``, ``AIOError/Code/forked``, or
  ///   ``AIOError/Code/system`` for a number that is no descriptor.
  @discardableResult
  public func send(
    _ file: AIOFile, at offset: Int64, count: Int, to socket: Int32, header: [UInt8] = [],
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIOSend {
    let file = file.file
    let subject = try checkSend(file, at: offset, count: count, to: socket)
    guard file.retain() else { throw .fileClosed(subject) }
    let send = FileSend(
      file, at: offset, count: count, header: header, to: socket, on: loop, completion: completion)
    loop.start(send)
    return AIOSend(send: send)
  }

  /// Sends a part of a file to a socket, behind a header, and returns when the socket has taken it.
  ///
  /// Everything is as for the form with a completion handler. If the task is cancelled, the send
  /// ends with ``AIOError/Code/cancelled``, before its first byte or in the middle.
  ///
  /// - Returns: The number of bytes of the file that were sent: `count`, fewer only if the file
  ///   ends before.
  @discardableResult
  public func send(
    _ file: AIOFile, at offset: Int64, count: Int, to socket: Int32, header: [UInt8] = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await awaitCancellably(isolation: isolation) { completion throws(AIOError) in
      try send(file, at: offset, count: count, to: socket, header: header, completion: completion)
    } cancel: {
      $0.cancel()
    }
  }
}

/// The handle of a send: from ``AIOContext/send(_:at:count:to:header:completion:)``.
public struct AIOSend: Sendable {
  let send: FileSend

  /// The number of bytes that the socket has taken so far, with the header. May be read from any
  /// thread: a server that has no patience with clients that take nothing looks whether it changes.
  public var bytesSent: Int { send.progress.load(ordering: .relaxed) }

  /// Cancels the send: no more is sent, and it completes with ``AIOError/Code/cancelled``, unless
  /// it ends otherwise first. A read that the kernel has is waited for. May be called from any
  /// thread, and never blocks.
  public func cancel() { send.cancel() }
}

/// The outcome of ``AIOContext/sendIfCached(_:at:count:to:header:)``.
public enum AIOCachedSend: Hashable, Sendable {
  /// The socket has taken so many bytes of the header and the file, in that order, 1 or more: all
  /// that were asked for, or fewer where it had no room for more.
  case sent(Int)
  /// The socket has no room: once it is writable, the call can succeed.
  case socketFull
  /// Not all of the bytes are in the page cache, or the file ends before. Nothing was sent, of the
  /// header neither. They have to be read:
  /// ``AIOContext/send(_:at:count:to:header:completion:)`` does.
  case notCached
}

extension AIOContext {
  /// The most bytes of the file that one call of ``sendIfCached(_:at:count:to:header:)`` sends:
  /// 512 KiB, which takes some 60 us.
  public static var maximumCachedSend: Int { OpenFile.largestSend }

  /// Sends bytes to a socket, behind a header, if the page cache has them. Never blocks, and is for
  /// any thread. It is for servers that do the rest by themselves;
  /// ``send(_:at:count:to:header:completion:)`` does all of it. Corresponds to
  /// `cachestat(2)` (Linux 6.5; before that the answer is ``AIOCachedSend/notCached``),
  /// `sendmsg(2)` and `sendfile(2)`.
  ///
  /// What is cached is asked first, because `sendfile` waits for what is not; a page that is
  /// evicted in between is waited for. Of a direct file, and of one of another machine's or of
  /// FUSE, nothing counts as cached; and nothing where the kernel does not say, as for a file that
  /// the process neither owns nor may write to.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes, 1 or more, of which at most ``maximumCachedSend`` are sent.
  ///   - socket: The descriptor of a non-blocking stream socket.
  ///   - header: Bytes to send before those of the file, in the same packet.
  /// - Throws: As ``send(_:at:count:to:header:completion:)``; or what the socket
  ///   answers, for example `EPIPE`, without the signal.
  public func sendIfCached(
    _ file: AIOFile, at offset: Int64, count: Int, to socket: Int32, header: RawSpan = RawSpan()
  ) throws(AIOError) -> AIOCachedSend {
    let file = file.file
    let subject = try checkSend(file, at: offset, count: count, to: socket)
    guard file.retain() else { throw .fileClosed(subject) }
    defer { file.release() }
    let size = min(count, OpenFile.largestSend)
    guard size > 0, file.isCached(offset, size) else { return .notCached }
    var ofHeader = 0
    if !header.isEmpty {
      ofHeader = unsafe header.withUnsafeBytes {
        // The bytes are read during the call.
        Int(unsafe ckernel_send(socket, $0.baseAddress, UInt64($0.count), nil, 0, 1))
      }
      if ofHeader == -Int(EWOULDBLOCK) { return .socketFull }
      guard ofHeader >= 0 else { throw AIOError(errno: Int32(-ofHeader), subject) }
      if ofHeader < header.byteCount { return .sent(ofHeader) }
    }
    let answer = file.sendCached(at: offset, count: size, to: socket)
    // The header is sent, and what follows it has to be read, or has to wait.
    if ofHeader > 0, answer == nil || answer == -Int(EWOULDBLOCK) { return .sent(ofHeader) }
    guard let answer else { return .notCached }
    if answer == -Int(EWOULDBLOCK) { return .socketFull }
    guard answer > 0 else { throw AIOError(errno: Int32(-answer), subject) }
    return .sent(ofHeader + answer)
  }
}

extension AIOContext {
  /// Checks the arguments of a send; the socket only once as long as a source watches it.
  private func checkSend(
    _ file: OpenFile, at offset: Int64, count: Int, to socket: Int32
  ) throws(AIOError) -> AIOError.Subject {
    if Fork.isChild { throw .forked(.init(operation: .send, descriptor: socket)) }
    let known = loop.readiness.knowledge(of: socket)
    let subject = try file.checkSend(at: offset, count: count, to: socket, isStream: known.isStream)
    if known.isClosed { throw .contextClosed(subject) }
    if !known.isStream { loop.readiness.noteStream(socket) }
    return subject
  }
}

extension OpenFile {
  /// Checks the arguments of a send.
  ///
  /// - Parameter isStream: Whether the socket is known to be one that can be sent to.
  fileprivate func checkSend(
    at offset: Int64, count: Int, to socket: Int32, isStream: Bool
  ) throws(AIOError) -> AIOError.Subject {
    let subject = AIOError.Subject(
      operation: .send, path: path, descriptor: descriptor, offset: offset, length: count)
    guard offset >= 0 else { throw .negative(subject) }
    guard count >= 0 else {
      throw AIOError(
        .invalidOffset, subject, .text("\(count) bytes cannot be sent; 0 or more can"))
    }
    guard offset <= Int64.max - Int64(count) else { throw .pastLargestOffset(subject) }
    guard traits.isReadable else { throw .notReadable(subject) }
    if isStream { return subject }
    switch -ckernel_check_socket(socket) {
    case 0: return subject
    case ENOTSOCK, EPROTOTYPE:
      throw AIOError(
        .unsupportedFile, errno: .notSocket, subject,
        .text("descriptor \(socket) is no stream socket; to others, send what was read"))
    case EWOULDBLOCK:
      throw AIOError(
        .wrongAccessMode, subject,
        .text("socket \(socket) is blocking, and would stop the queue; set O_NONBLOCK first"))
    case let errno: throw AIOError(errno: errno, subject)
    }
  }
}
