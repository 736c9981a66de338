import Foundation
import TestSupport
import XCTest

/// A boot of the kernel in QEMU, driven and read over the serial console.
///
/// `make test` builds the kernel first. A test either gives commands with `run=` and reads the log when
/// the machine has powered off (`finish`), or types at the prompt (`Session`).
struct Boot {
  enum Loader: String { case pvh, grub }

  /// The meaning of QEMU's status by isa-debug-exit: success, a failed command, a stop.
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
  var hasSerialPort = true
  /// Whether instructions are counted, each a nanosecond of the machine's time, and QEMU's monitor shares the serial port.
  var countsInstructions = false
  /// Whether QEMU's monitor shares the serial port: Ctrl-A c leads there.
  var hasMonitor = false
  var hasExitDevice = true

  /// Seconds that a machine may take for anything, however busy its host is: only a hang meets it.
  static let limit: TimeInterval = 900

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

  /// Boots with these commands in `run=`, waits until the machine has powered off, and answers the log.
  func run(_ commands: String) throws -> Log {
    var boot = self
    boot.line += (line.isEmpty ? "" : " ") + "run=\"\(commands)\""
    return try boot.finish()
  }

  /// Boots, waits until the machine has powered off, and answers the log.
  func finish() throws -> Log {
    let session = try Session(self)
    let status = session.waitForExit()
    JSONKinds.check(session.text, of: line)
    return Log(text: session.text, status: status)
  }

  func arguments() throws -> [String] {
    var list = [
      "-M", board, "-m", memory, "-smp", "\(processors)", "-cpu", processor, "-display", "none", "-monitor",
      "none", "-serial", countsInstructions || hasMonitor ? "mon:stdio" : hasSerialPort ? "stdio" : "none",
      "-no-reboot",
    ]
    // The monitor has the count of a machine that is recorded.
    if countsInstructions { list += ["-icount", "shift=0,rr=record,rrfile=/dev/null"] }
    if hasExitDevice { list += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"] }
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

/// A running machine with a user at its serial console.
final class Session: @unchecked Sendable {
  /// The output of the machine, which a thread of its own reads: to the end of the pipe.
  private final class Output: @unchecked Sendable {
    private let condition = NSCondition()
    private var bytes = Data()
    private var searched = 0
    private var isAtEnd = false

    func read(_ handle: FileHandle) {
      Thread.detachNewThread { [self] in
        while true {
          // Reads the available bytes, or the end: a read of so many bytes would wait for all of them.
          let data = handle.availableData
          condition.withLock {
            if data.isEmpty { isAtEnd = true } else { bytes.append(data) }
            condition.broadcast()
          }
          if data.isEmpty { return }
        }
      }
    }

    var text: String { String(decoding: condition.withLock { bytes }, as: UTF8.self) }
    var tail: String { String(decoding: condition.withLock { bytes.suffix(2000) }, as: UTF8.self) }

    /// Whether `wanted` comes, from where the last search ended on.
    func find(_ wanted: Data, until deadline: Date) -> Bool {
      condition.lock()
      defer { condition.unlock() }
      while true {
        if let found = bytes.range(of: wanted, in: searched..<bytes.count) {
          searched = found.upperBound
          return true
        }
        if isAtEnd || !condition.wait(until: deadline) { return false }
      }
    }

    /// Whether the other side closes the pipe, and all that it wrote has been read.
    func ends(until deadline: Date) -> Bool {
      condition.lock()
      defer { condition.unlock() }
      while !isAtEnd { if !condition.wait(until: deadline) { return isAtEnd } }
      return true
    }
  }

  private let process = Process()
  private let input = Pipe()
  private let output = Output()
  private var disk: URL?

  init(_ boot: Boot) throws {
    // A machine that has stopped reads no more: that is an answer, not a signal.
    signal(SIGPIPE, SIG_IGN)
    let pipe = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-system-x86_64")
    process.arguments = try boot.arguments()
    process.standardInput = input
    process.standardOutput = pipe
    process.standardError = pipe
    if boot.loader == .grub, let iso = process.arguments?.last(where: { $0.hasSuffix(".iso") }) {
      disk = URL(fileURLWithPath: iso)
    }
    try process.run()
    // The machine alone writes: when it has gone, the pipe ends.
    try? pipe.fileHandleForWriting.close()
    output.read(pipe.fileHandleForReading)
  }

  deinit {
    if process.isRunning { process.terminate() }
    if let disk { try? FileManager.default.removeItem(at: disk) }
  }

  /// Everything that the machine has printed, without carriage returns.
  var text: String { output.text.replacingOccurrences(of: "\r", with: "") }

  func type(_ text: String) { try? input.fileHandleForWriting.write(contentsOf: Data(text.utf8)) }

  /// Waits until the machine prints `text`, from where the last search ended on.
  @discardableResult
  func expect(_ text: String, file: StaticString = #filePath, line: UInt = #line) -> Bool {
    if output.find(Data(text.utf8), until: Date(timeIntervalSinceNow: Boot.limit)) { return true }
    XCTFail("no \"\(text)\"; the console's end:\n\(output.tail)", file: file, line: line)
    return false
  }

  /// Asks QEMU's monitor how many instructions the machine has executed, the firmware's included, and ends it.
  func endedByMonitor() throws -> Int {
    // Leads from the serial port to the monitor.
    type("\u{1}c")
    expect("(qemu)")
    type("info replay\n")
    expect("instruction count = ")
    type("quit\n")
    _ = waitForExit()
    let count = text.components(separatedBy: "instruction count = ").last?.prefix { $0.isNumber }
    return try XCTUnwrap(count.flatMap { Int($0) }, text)
  }

  /// Asks QEMU's monitor for bytes of physical memory, and ends it.
  func memoryByMonitor(at address: UInt64, count: Int) -> [UInt8] {
    type("\u{1}c")
    expect("(qemu)")
    type("xp /\(count)xb 0x\(String(address, radix: 16))\n")
    expect(": 0x")
    type("quit\n")
    _ = waitForExit()
    // Lines as `00000000000b8000: 0x53 0x07`.
    return text.components(separatedBy: "xp /").last.map { dump in
      dump.split(whereSeparator: \.isNewline).filter { $0.contains(": 0x") }.flatMap { line in
        line.split(separator: " ").dropFirst().compactMap { UInt8($0.dropFirst(2), radix: 16) }
      }
    } ?? []
  }

  /// QEMU's exit status, once all that it printed has been read; -1 when it had to be ended.
  func waitForExit() -> Int32 {
    let isOver = output.ends(until: Date(timeIntervalSinceNow: Boot.limit))
    if !isOver { process.terminate() }
    process.waitUntilExit()
    return isOver ? process.terminationStatus : -1
  }
}
