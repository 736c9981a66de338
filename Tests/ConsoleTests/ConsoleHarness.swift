import BlockDevices
import CPlatform
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Console

/// A terminal made of a script and a transcript, a clock that moves when the console rests, and a host that records
/// the calls to it.
final class ScriptedTerminal {
  var input: [UInt8] = []
  /// Bytes that arrive only at their time.
  var later: [(at: UInt64, bytes: [UInt8])] = []
  var output: [UInt8] = []
  var milliseconds: UInt64 = 0
  var left: [UInt8] = []
  var triggered: [UInt8] = []
  var panics = 0
  /// Typed when the console rests with nothing to read: without it, the script has ended.
  var whenIdle: (() -> Void)?
  var rests = 0
  /// How pageable memory is reached.
  var processor: SoftwareProcessor?

  func type(_ text: String) { input += Array(text.utf8) }

  private func deliver() {
    while let first = later.first, first.at <= milliseconds {
      input += first.bytes
      later.removeFirst()
    }
  }

  var unread: Int {
    deliver()
    return input.count
  }

  func rest(_ most: UInt64, _ unread: Int) {
    rests += 1
    if input.count > unread { return }
    milliseconds += max(
      1, min(most, later.first.map { $0.at > milliseconds ? $0.at - milliseconds : 0 } ?? most))
    if input.isEmpty && later.isEmpty { whenIdle?() }
  }

  var terminal: Terminal {
    Terminal(
      Unmanaged.passUnretained(self).toOpaque(),
      countUnread: { ScriptedTerminal.from($0).unread },
      readByte: { ScriptedTerminal.from($0).input[$1] },
      removeBytes: { ScriptedTerminal.from($0).input.removeSubrange($1..<$1 + $2) },
      writeBytes: { ScriptedTerminal.from($0).output += Array(UnsafeBufferPointer(start: $1, count: $2)) },
      waitForBytes: { ScriptedTerminal.from($0).rest($1, $2) },
      readClock: { ScriptedTerminal.from($0).milliseconds })
  }

  var host: ConsoleHost {
    ConsoleHost(
      Unmanaged.passUnretained(self).toOpaque(),
      leaveMachine: { ScriptedTerminal.from($0).left.append($1) },
      stopAsPanic: { ScriptedTerminal.from($0).panics += 1 },
      triggerFault: { ScriptedTerminal.from($0).triggered.append($1) },
      writeName: { _, _, _, _ in 0 },
      access: WordAccess(
        Unmanaged.passUnretained(self).toOpaque(),
        loadWord: { context, address, value in
          ScriptedTerminal.answer { value.pointee = try ScriptedTerminal.from(context).load(address) }
        },
        storeWord: { context, address, value in
          ScriptedTerminal.answer { try ScriptedTerminal.from(context).store(address, value) }
        },
        loadPage: { context, address, words in
          ScriptedTerminal.answer {
            try ScriptedTerminal.from(context).processor!.load(page: VirtualAddress(address), into: words)
          }
        }))
  }

  private func load(_ address: UInt64) throws -> UInt64 {
    try processor!.load(VirtualAddress(address))
  }
  private func store(_ address: UInt64, _ value: UInt64) throws {
    try processor!.store(VirtualAddress(address), value)
  }
  private static func answer(_ access: () throws -> Void) -> UInt8 {
    do {
      try access()
      return 0
    } catch {
      return (error as! PagingError).rawValue + 1
    }
  }

  static func from(_ context: UnsafeMutableRawPointer?) -> ScriptedTerminal {
    Unmanaged<ScriptedTerminal>.fromOpaque(context!).takeUnretainedValue()
  }

  /// The output since the last read of this, with line ends as in a log.
  func taken() -> String {
    defer { output = [] }
    return String(decoding: output, as: UTF8.self).replacingOccurrences(of: "\r\n", with: "\n")
  }

  /// The cells of a screen that understands the output of the line editor: text, backspace, return and newline. The
  /// last line, and the cursor's column on it.
  func lastLine() -> (text: String, column: Int) {
    var line: [UInt8] = []
    var column = 0
    for byte in output {
      switch byte {
      case 0x08:
        XCTAssertGreaterThan(column, 0, "a backspace at the left edge")
        column = max(0, column - 1)
      case 0x0d: column = 0
      case 0x0a:
        line = []
        column = 0
      default:
        if column == line.count { line.append(byte) } else { line[column] = byte }
        column += 1
      }
    }
    while line.last == 0x20 { line.removeLast() }
    return (String(decoding: line, as: UTF8.self), column)
  }
}

/// A console over a scripted terminal and a small machine: 64 MiB with a hole below 1 MiB.
final class ConsoleHarness {
  let terminal = ScriptedTerminal()
  let console: Shell
  private let system: HostSystem
  let boot: UnsafeMutablePointer<cp_boot_information>
  private var blocks: [UnsafeMutableRawPointer] = []

  var host: SimulatedMachine { system.host }
  var memory: MemorySystem { system.memory }
  var physical: FrameAllocator { memory.physical }
  var statistics: Statistics { memory.statistics }

  /// The swap device: a disk in memory of the test.
  private(set) var disk: FaultyDisk?

  /// With `trace`, that file is the boot module; with `swap`, there is a device of that size.
  init(
    ranges: [(base: UInt64, length: UInt64, type: UInt32)] = ConsoleHarness.ranges,
    rules: MapRules = MapRules(lowMemory: .all),
    memory size: ByteCount = .mebibytes(64), trace: Data? = nil, swap: ByteCount? = nil
  ) {
    var blocks: [UnsafeMutableRawPointer] = []
    func block(_ size: ByteCount) -> UnsafeMutableRawPointer {
      let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: 64)
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
      blocks.append(memory)
      return memory
    }
    let host = SimulatedMachine(memory: size)
    let machine = host.machine
    boot = block(ByteCount(MemoryLayout<cp_boot_information>.stride))
      .bindMemory(to: cp_boot_information.self, capacity: 1)
    boot.pointee.range_count = UInt32(ranges.count)
    for (i, range) in ranges.enumerated() {
      cp_boot_ranges(boot)[i] = cp_boot_range(
        base: range.base, length: range.length, type: range.type, attributes: 0)
    }
    var options = HostSystem.Options()
    options.rules = rules
    options.firmware = ranges.map { $0.type == 1 ? usable($0.base, $0.length) : reserved($0.base, $0.length) }
    options.occupied = [
      OccupiedRange(base: PhysicalAddress(1 << 20), length: .mebibytes(1), role: .image)
    ]
    if let trace {
      boot.pointee.module_count = 1
      cp_boot_modules(boot)[0] = cp_boot_module(base: 3 << 20, length: UInt64(trace.count))
      if !trace.isEmpty {
        trace.copyBytes(
          to: machine.directMap.pointer(to: PhysicalAddress(3 << 20)).assumingMemoryBound(to: UInt8.self),
          count: trace.count)
        options.occupied.append(
          OccupiedRange(
            base: PhysicalAddress(3 << 20), length: ByteCount(trace.count), role: .bootModule))
      }
    }
    // As in the kernel, the direct map has an address of its own, which only the tables know.
    system = try! HostSystem(on: host, options)
    let memory = system.memory
    console = Shell(
      in: block(Shell.size), terminal: terminal.terminal, host: terminal.host,
      subject: Subject(memory: memory, boot: boot))
    nonisolated(unsafe) let buffer = TranslationBuffer(block(TranslationBuffer.size))
    host.invalidate = { buffer.invalidate($0, $1) }
    terminal.processor = SoftwareProcessor(
      directMap: machine.directMap, tables: memory.pageTables, paging: memory.paging, buffer: buffer)
    if let swap {
      let ramDisk = RamDisk.create(
        in: block(RamDisk.stateSize), ShortName("ram"), machine: machine,
        over: RamDisk.Extent(block(swap), swap.pagesRoundedUp))
      let disk = FaultyDisk.create(in: block(FaultyDisk.stateSize), over: ramDisk, machine: machine)
      host.runDevices = { disk.poll() }
      try! memory.paging.attachSwap(disk.device)
      self.disk = disk
    }
    self.blocks = blocks
  }

  static let ranges: [(base: UInt64, length: UInt64, type: UInt32)] = [
    (0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0xf0000, 0x10000, 2), (0x100000, 63 << 20, 1),
    (0xfffc_0000, 0x40000, 2),
  ]

  deinit { for block in blocks { block.deallocate() } }

  /// Runs a line as `run=` would and returns what it printed.
  @discardableResult func run(_ line: String) -> String {
    outcome = Array(line.utf8).withUnsafeBufferPointer { console.run($0) }
    let text = terminal.taken()
    JSONKinds.check(text, of: line)
    return text
  }
  var outcome: CommandError?
  /// The output at the start of a conversation.
  var banner = ""

  /// A conversation at a terminal: types `script`, and leaves when it has been read.
  @discardableResult func converse(_ script: String, answering size: (columns: Int, rows: Int)? = nil)
    -> String
  {
    terminal.type(script)
    if let size { terminal.later.append((at: 5, bytes: Array("\u{1b}[\(size.rows);\(size.columns)R".utf8))) }
    terminal.whenIdle = { [terminal] in terminal.type("\u{15}poweroff\r") }
    bytes("color=0") { console.serve(KernelCommandLine($0)) }
    let log = terminal.taken()
    guard let end = log.range(of: "leaves.\n") else { return log }
    banner = String(log[..<end.upperBound])
    return String(log[end.upperBound...])
  }
}

func bytes<R>(_ text: String, _ body: (UnsafeBufferPointer<UInt8>) throws -> R) rethrows -> R {
  try Array(text.utf8).withUnsafeBufferPointer { try body($0) }
}

func text(_ line: Line) -> String { line.withBytes { String(decoding: $0, as: UTF8.self) } }
