// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-httpd and a browser, which says what it has seen by an upload.
final class BrowserTests: XCTestCase {
  /// Two minutes of silence, of which the browser plays parts, and a picture of one colour.
  private static let page = """
    <!doctype html><meta charset="utf-8"><title>aio-httpd</title>
    <img id="picture" src="picture.png"><audio id="sound" src="sound.wav" muted></audio>
    <script>
    const next = (what, event) => new Promise((done, failed) => {
      what.addEventListener(event, done, { once: true });
      what.addEventListener("error", () => failed(what.error?.message ?? event), { once: true });
    });
    async function look() {
      const outcome = { times: [] };
      await picture.decode();
      const canvas = document.createElement("canvas");
      const drawing = canvas.getContext("2d");
      drawing.drawImage(picture, 0, 0);
      outcome.pixel = Array.from(drawing.getImageData(1, 1, 1, 1).data);
      outcome.size = [picture.naturalWidth, picture.naturalHeight];
      if (sound.readyState < 1) await next(sound, "loadedmetadata");
      outcome.duration = sound.duration;
      for (const time of [100, 40]) {
        sound.currentTime = time;
        await next(sound, "seeked");
        outcome.times.push(sound.currentTime);
      }
      await sound.play();
      while (sound.currentTime <= 40) await next(sound, "timeupdate");
      outcome.played = true;
      return outcome;
    }
    look().catch(error => ({ error: String(error) })).then(outcome =>
      fetch("outcome", { method: "PUT", body: JSON.stringify(outcome) }));
    </script>
    """

  private struct Outcome: Decodable {
    var error: String?
    var times: [Double]?
    var pixel: [Int]?
    var size: [Int]?
    var duration: Double?
    var played: Bool?
  }

  private func browser() throws -> String {
    for name in ["chromium-browser", "google-chrome", "google-chrome-stable"] {
      if let program = try? ChildProcess.installed(name, package: "chromium") { return program }
    }
    return try ChildProcess.installed("chromium", package: "chromium")
  }

  /// The head of a WAV file of so many seconds in 16 bits, two channels, 48 kHz.
  private func waveHead(seconds: Int) -> [UInt8] {
    func bytes(_ number: Int, _ count: Int) -> [UInt8] {
      (0..<count).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
    }
    let count = seconds * 48_000 * 4
    return Array("RIFF".utf8) + bytes(36 + count, 4) + Array("WAVEfmt ".utf8) + bytes(16, 4)
      + bytes(1, 2) + bytes(2, 2) + bytes(48_000, 4) + bytes(48_000 * 4, 4) + bytes(4, 2)
      + bytes(16, 2) + Array("data".utf8) + bytes(count, 4)
  }

  func testABrowserPlaysPartsOfASoundAndShowsAPicture() throws {
    let program = try browser()
    let directory = try temporaryDirectory()
    let accesses = directory.path.appending("access").string
    let server = try HTTPServer(directory, ["--writable", "--access-log", accesses])
    try server.make("index.html", Self.page)
    try server.make("sound.wav", waveHead(seconds: 120))
    let sound = server.root.appending("sound.wav").string
    XCTAssertEqual(truncate(sound, 44 + 120 * 48_000 * 4), 0)
    let picture = """
      iVBORw0KGgoAAAANSUhEUgAAAAQAAAADCAIAAAA7ljmRAAAAEElEQVR42mPgOiEHRww4OQDalwtBAp82jwAAAABJRU5ErkJggg==
      """
    try server.make("picture.png", [UInt8](XCTUnwrap(Data(base64Encoded: picture))))

    let profile = directory.path.appending("profile").string
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = [
      "--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
      "--disable-background-networking", "--disable-component-update", "--mute-audio",
      "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0",
      "--user-data-dir=\(profile)", server.url + "/",
    ]
    let errors = directory.path.appending("errors").string
    _ = FileManager.default.createFile(atPath: errors, contents: nil)
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle(forWritingAtPath: errors)
    try process.run()
    defer {
      if process.isRunning { process.terminate() }
      process.waitForEnd()
      // Its children write there until they notice.
      _ = eventually(within: 5) {
        try? FileManager.default.removeItem(atPath: profile)
        return access(profile, F_OK) != 0
      }
    }
    let file = server.root.appending("outcome").string
    let hasAnswered = eventually {
      access(file, F_OK) == 0 || !process.isRunning
    }
    func log() -> String { (try? String(contentsOfFile: accesses, encoding: .utf8)) ?? "" }
    if !hasAnswered || access(file, F_OK) != 0, log().isEmpty {
      let said = (try? String(contentsOfFile: errors, encoding: .utf8)) ?? ""
      throw XCTSkip("\(program) does not start here: \(said.suffix(500))")
    }
    let outcome = try JSONDecoder().decode(
      Outcome.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
    XCTAssertNil(outcome.error)
    XCTAssertEqual(outcome.size, [4, 3])
    XCTAssertEqual(outcome.pixel, [10, 200, 30, 255])
    XCTAssertEqual(outcome.duration, 120)
    XCTAssertEqual(outcome.times, [100, 40])
    XCTAssertEqual(outcome.played, true)
    process.terminate()
    process.waitForEnd()
    // The rest of an answer that was not wanted any more was not sent.
    let parts = log().matches(of: /"GET \/sound\.wav HTTP\/1\.1" 206 (\d+)/).compactMap {
      Int($0.1)
    }
    XCTAssertGreaterThan(parts.count, 1, log())
    XCTAssertEqual(server.stop(), 0)
  }
}
