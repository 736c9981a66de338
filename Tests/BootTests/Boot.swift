import Foundation
import XCTest

/// A boot of the kernel in QEMU, driven and read over the serial console.
///
/// `make test` builds the kernel first. A test either gives commands with `run=` and reads the log when
/// the machine has powered off (`finish`), or types at the prompt (`Session`).
struct Boot {
  enum Loader: String { case pvh, grub }

  /// What QEMU's status says by isa-debug-exit: success, a failed command, a stop.
  enum Status { static let success: Int32 = 33, failed: Int32 = 35, stopped: Int32 = 37 }

  static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
  static let sample = root.appendingPathComponent("Traces/linux-6.1-sample.trace")

  var loader = Loader.pvh
  var memory = "256M"
  var processors = 1
  var processor = "qemu64"
  var board = "pc"
  /// The kernel's command line, as typed after QEMU's `-append`.
  var line = ""
  var module: URL?
  /// The table of processors that GRUB hands over instead of the firmware's.
  var processorTable: Data?
  var extra: [String] = []

  struct Log {
    let text: String
    let status: Int32

    /// The rows of kind `kind` that a command printed with `-j`.
    func rows(_ kind: String) -> [[String: Any]] {
      text.split(whereSeparator: \.isNewline).compactMap { line in
        guard line.hasPrefix("{") else { return nil }
        return try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      }.filter { $0["kind"] as? String == kind }
    }
  }

  /// Boots with these commands in `run=`, waits until the machine has powered off, and gives the log.
  func run(_ commands: String, within seconds: TimeInterval = 60) throws -> Log {
    var boot = self
    boot.line += (line.isEmpty ? "" : " ") + "run=\"\(commands)\""
    return try boot.finish(within: seconds)
  }

  /// Boots, waits until the machine has powered off, and gives the log.
  func finish(within seconds: TimeInterval = 60) throws -> Log {
    let session = try Session(self)
    let status = session.waitForExit(within: seconds)
    return Log(text: session.text, status: status)
  }

  func arguments() throws -> [String] {
    var list = [
      "-M", board, "-m", memory, "-smp", "\(processors)", "-cpu", processor, "-display", "none", "-monitor",
      "none", "-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
    ]
    switch loader {
    case .pvh:
      list += ["-kernel", Self.root.appendingPathComponent("build/strata").path, "-append", line]
      if let module { list += ["-initrd", module.path] }
    case .grub:
      list += ["-cdrom", try image().path]
    }
    return list + extra
  }

  /// An ISO with this command line and module, made by the script that `make iso` uses.
  private func image() throws -> URL {
    let iso = Self.root.appendingPathComponent("build/test-\(UUID().uuidString).iso")
    let script = Process()
    script.executableURL = Self.root.appendingPathComponent("Scripts/iso")
    script.currentDirectoryURL = Self.root
    script.arguments = [iso.path, "build/strata"]
    let table = iso.appendingPathExtension("madt")
    try processorTable?.write(to: table)
    defer { try? FileManager.default.removeItem(at: table) }
    script.environment = ProcessInfo.processInfo.environment.merging(
      ["ARGS": line, "TRACE": module?.path ?? "", "MADT": processorTable == nil ? "" : table.path]
    ) { $1 }
    script.standardOutput = FileHandle.nullDevice
    script.standardError = FileHandle.nullDevice
    try script.run()
    script.waitUntilExit()
    XCTAssertEqual(script.terminationStatus, 0, "Scripts/iso")
    return iso
  }
}

/// A running machine with somebody at its serial console.
final class Session: @unchecked Sendable {
  private let process = Process()
  private let input = Pipe()
  private let output = Pipe()
  private let lock = NSCondition()
  private var received = Data()
  private var searched = 0

  init(_ boot: Boot) throws {
    // A machine that has stopped reads no more: that is an answer, not a signal.
    signal(SIGPIPE, SIG_IGN)
    process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-system-x86_64")
    process.arguments = try boot.arguments()
    process.standardInput = input
    process.standardOutput = output
    process.standardError = output
    output.fileHandleForReading.readabilityHandler = { [weak self] handle in
      let data = handle.availableData
      guard let self, !data.isEmpty else { return }
      self.lock.withLock {
        self.received.append(data)
        self.lock.broadcast()
      }
    }
    try process.run()
    if boot.loader == .grub, let iso = process.arguments?.last(where: { $0.hasSuffix(".iso") }) {
      disk = URL(fileURLWithPath: iso)
    }
  }

  private var disk: URL?

  deinit {
    if process.isRunning { process.terminate() }
    if let disk { try? FileManager.default.removeItem(at: disk) }
  }

  /// Everything that the machine has printed, without carriage returns.
  var text: String {
    String(decoding: lock.withLock { received }, as: UTF8.self).replacingOccurrences(of: "\r", with: "")
  }

  func type(_ text: String) { try? input.fileHandleForWriting.write(contentsOf: Data(text.utf8)) }

  /// Waits until the machine prints `text`, from where the last search ended on.
  @discardableResult
  func expect(
    _ text: String, within seconds: TimeInterval = 30, file: StaticString = #filePath, line: UInt = #line
  )
    -> Bool
  {
    let deadline = Date(timeIntervalSinceNow: seconds)
    let wanted = Data(text.utf8)
    lock.lock()
    defer { lock.unlock() }
    while true {
      if let found = received.range(of: wanted, in: searched..<received.count) {
        searched = found.upperBound
        return true
      }
      guard lock.wait(until: deadline) else {
        let tail = String(decoding: received.suffix(2000), as: UTF8.self)
        XCTFail("no \"\(text)\" within \(seconds) s; the console's end:\n\(tail)", file: file, line: line)
        return false
      }
    }
  }

  /// QEMU's exit status, or -1 when it had to be ended.
  func waitForExit(within seconds: TimeInterval = 60) -> Int32 {
    let deadline = Date(timeIntervalSinceNow: seconds)
    while process.isRunning && Date() < deadline { usleep(5000) }
    guard !process.isRunning else {
      process.terminate()
      process.waitUntilExit()
      return -1
    }
    // What is left in the pipe arrives after the process has gone.
    usleep(20_000)
    return process.terminationStatus
  }
}
