import BlockDevices
import CPlatform
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import TestSupport
import XCTest
import Zsmalloc

@testable import Workloads

/// swab(3), which copies pairs of bytes with the two exchanged; Swift's view of libc leaves it out.
private let swapBytes = unsafeBitCast(
  dlsym(nil, "swab"), to: (@convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int) -> Void).self)

/// A machine with real threads, each a processor with a translation buffer of its own. The buffer drops only the
/// translations that its processor invalidates.
private final class StressMachine: @unchecked Sendable {
  private let system: HostSystem
  private let disk: RamDisk
  private var blocks: [UnsafeMutableRawPointer] = []
  private var processors: [SoftwareProcessor] = []
  private let over = Atomic<Bool>(false)
  /// Makes this processor deaf to what the others have unmapped, for the test of the test.
  var deaf: Int?

  var host: SimulatedMachine { system.host }
  var memory: MemorySystem { system.memory }

  /// Processor 0 is the test's and keeps no translations; the last one works the disk.
  init(_ size: ByteCount, processors count: Int, swap: PageCount) throws {
    var options = HostSystem.Options()
    options.processors = count + 1
    let system = try HostSystem(memory: size, options)
    self.system = system
    let (host, memory) = (system.host, system.memory)
    var blocks: [UnsafeMutableRawPointer] = []
    func block(_ size: ByteCount) -> UnsafeMutableRawPointer {
      let block = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: 4096)
      block.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
      blocks.append(block)
      return block
    }
    disk = RamDisk.create(
      in: block(RamDisk.stateSize), ShortName("ram"), machine: host.machine,
      over: RamDisk.Extent(block(swap.bytes), swap))
    for _ in 0...count {
      processors.append(
        SoftwareProcessor(
          directMap: host.machine.directMap, tables: memory.pageTables, paging: memory.paging,
          buffer: TranslationBuffer(block(TranslationBuffer.size), memory: host.memorySize)))
    }
    self.blocks = blocks
    try memory.paging.attachSwap(disk.device)
    host.hasOtherThreads = true
    host.atStart = { [unowned self] in if $0 < count { listen($0) } }
  }

  deinit { blocks.forEach { $0.deallocate() } }

  private static func from(_ context: UnsafeMutableRawPointer?) -> StressMachine {
    Unmanaged<StressMachine>.fromOpaque(context!).takeUnretainedValue()
  }

  /// This thread is about to be processor `index`.
  private func listen(_ index: Int) {
    processors[index].buffer.invalidate(0, 1 << 52)
    cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
    cp_processor().pointee.root = UnsafeRawPointer(
      host.machine.directMap.pointer(to: memory.pageTables.root))
    cp_processor().pointee.find_frame = { context, address, isWrite in
      let bed = StressMachine.from(context)
      let buffer = bed.processors[Int(cp_processor_index())].buffer
      let kind: AccessKind = isWrite ? .write : .read
      return (buffer.reach(VirtualAddress(address), kind, bed.memory.pageTables) ?? .none).rawValue
    }
    cp_processor().pointee.invalidate = { context, address in
      let (bed, index) = (StressMachine.from(context), Int(cp_processor_index()))
      if index == bed.deaf { return }
      if address == .max {
        bed.processors[index].buffer.invalidate(0, 1 << 52)
      } else {
        bed.processors[index].buffer.invalidate(address, 1)
      }
    }
  }

  /// The processor that this thread is. One without an invalidation hook drops all translations each time.
  private var mine: SoftwareProcessor {
    let processor = processors[Int(cp_processor_index())]
    if cp_processor().pointee.invalidate == nil { processor.buffer.invalidate(0, 1 << 52) }
    return processor
  }

  /// The memory that an access reaches. A page may be written to while a device reads it, whose copy is then
  /// discarded. An address that was freed may be read, if the word is discarded. The thread sanitizer can't know
  /// that, but it does not see these accesses: it does not watch swab(3).
  private func reach(_ address: UInt64, _ kind: AccessKind) throws(PagingError) -> UnsafeMutableRawPointer {
    try mine.reach(VirtualAddress(address), kind)
  }
  private static func exchanged(_ word: UInt64) -> UInt64 {
    let even: UInt64 = 0x00ff_00ff_00ff_00ff
    return (word & even) << 8 | (word >> 8) & even
  }
  private static func answer(_ access: () throws(PagingError) -> Void) -> UInt8 {
    do throws(PagingError) {
      try access()
      return 0
    } catch {
      return error.rawValue + 1
    }
  }

  private var access: WordAccess {
    WordAccess(
      Unmanaged.passUnretained(self).toOpaque(),
      loadWord: { context, address, value in
        StressMachine.answer { () throws(PagingError) in
          swapBytes(try StressMachine.from(context).reach(address, .read), value, 8)
          value.pointee = StressMachine.exchanged(value.pointee)
        }
      },
      storeWord: { context, address, value in
        StressMachine.answer { () throws(PagingError) in
          let place = try StressMachine.from(context).reach(address, .write)
          withUnsafeBytes(of: StressMachine.exchanged(value)) { swapBytes($0.baseAddress!, place, 8) }
        }
      },
      // No worker of the stress reads whole pages.
      loadPage: { _, _, _ in PagingError.notPageable.rawValue + 1 })
  }

  /// Runs a stress beside the disk's thread and a clock of a millisecond. It lasts at least `ticks`, and until
  /// `operations` are done, however busy the host is, or until an invariant fails.
  func run(
    _ plan: ProcessorStressPlan, ticks: UInt64, operations: UInt64
  ) throws -> ProcessorStressOutcome {
    over.store(false, ordering: .relaxed)
    let clock = Thread { [self] in
      while !over.load(ordering: .acquiring) {
        usleep(1000)
        host.advance()
      }
    }
    clock.start()
    let watchdog = DispatchWorkItem {
      fatalError("the processors have been at it for half an hour: a deadlock")
    }
    DispatchQueue.global().asyncAfter(deadline: .now() + 1800, execute: watchdog)
    defer { watchdog.cancel() }
    return try host.runAs(processor: 0) {
      let last = UInt64(1) << UInt64(processors.count - 1)
      let worker = host.machine.start(
        "ram disk", .service, on: last, Unmanaged.passUnretained(self).toOpaque(),
        { StressMachine.from($0).work() })
      defer {
        over.store(true, ordering: .releasing)
        host.machine.join(worker!)
      }
      return try ProcessorStress.run(plan, on: memory, access) { passed, done in
        passed >= ticks && done >= operations ? .stop : .goOn
      }
    }
  }

  /// The disk.
  private func work() {
    while !over.load(ordering: .acquiring) {
      if !disk.poll() { usleep(20) }
    }
  }
}

/// All layers at once, by several processors with real threads.
final class ProcessorStressTests: XCTestCase {
  /// So many workers, and as many processors to spare for threads that come and go.
  private func stress(
    workers: Int, seed: UInt64, milliseconds: UInt64 = 2000, operations: UInt64 = 20_000, deaf: Int? = nil
  ) throws -> ProcessorStressOutcome {
    let bed = try StressMachine(.mebibytes(32), processors: 1 + workers + 2, swap: PageCount(UInt64(16384)))
    bed.deaf = deaf
    var plan = ProcessorStressPlan(
      seed: seed, processors: workers + 1, workers: workers, pages: PageCount(UInt64(7000)))
    plan.ticks = 3_600_000
    let outcome = try bed.run(plan, ticks: milliseconds, operations: operations)
    print(outcome)
    return outcome
  }

  private func holds(
    workers: Int, seed: UInt64, file: StaticString = #filePath, line: UInt = #line
  ) throws {
    let outcome = try stress(workers: workers, seed: historySeed(seed))
    if let failure = outcome.failure {
      XCTFail(
        "\(failure.invariant): at \(String(failure.subject, radix: 16)), found \(String(failure.found, radix: 16)), "
          + "expected \(String(failure.expected, radix: 16)), on processor \(failure.processor); seed \(seed)",
        file: file, line: line)
    }
    XCTAssertEqual(outcome.workers, UInt64(workers), file: file, line: line)
    XCTAssertGreaterThan(outcome.visitors, 0, file: file, line: line)
    XCTAssertGreaterThan(outcome.exchanged, 100, file: file, line: line)
    XCTAssertGreaterThan(outcome.remapped, 20, file: file, line: line)
    XCTAssertGreaterThan(outcome.pages, 100, file: file, line: line)
  }

  func testTwoProcessorsUnderStressLoseNothing() throws { try holds(workers: 2, seed: 61) }
  func testThreeProcessorsUnderStressLoseNothing() throws { try holds(workers: 3, seed: 62) }
  func testFourProcessorsUnderStressLoseNothing() throws { try holds(workers: 4, seed: 63) }

  // MARK: The compressed store

  private func storeStress(
    _ access: StraddlingAccess, seed: UInt64, milliseconds: UInt64, deaf: Int? = nil
  ) throws -> ProcessorStressOutcome {
    let bed = try StressMachine(.mebibytes(32), processors: 5, swap: PageCount(UInt64(64)))
    try bed.memory.compressed.store.select(access)
    bed.deaf = deaf
    var plan = ProcessorStressPlan(seed: seed, processors: 4, workers: 3, pages: .zero)
    plan.turns = .compressedStore
    plan.ticks = 3_600_000
    return try bed.run(plan, ticks: milliseconds, operations: 10_000)
  }

  /// Each processor caches translations until it invalidates them, and none reads an object by one that is stale.
  func testProcessorsReadTheStoreInEachWayByNoStaleTranslation() throws {
    for access in StraddlingAccess.allCases {
      let outcome = try storeStress(access, seed: historySeed(65), milliseconds: 300)
      XCTAssertNil(outcome.failure, "\(access): \(outcome)")
      XCTAssertGreaterThan(outcome.reads, 1000, "\(access)")
      XCTAssertGreaterThan(outcome.exchanged, 1000, "\(access)")
    }
  }

  /// One that keeps the translations of its window is found out.
  func testAProcessorThatKeepsTheTranslationsOfItsWindowIsFound() throws {
    let outcome = try storeStress(.window, seed: 66, milliseconds: 60_000, deaf: 2)
    XCTAssertNotNil(outcome.failure)
  }

  /// A processor that does not learn what the others have unmapped is found out.
  func testAProcessorThatIgnoresInvalidationsIsFound() throws {
    let outcome = try stress(workers: 3, seed: 64, milliseconds: 60_000, deaf: 2)
    XCTAssertNotNil(outcome.failure)
  }
}
