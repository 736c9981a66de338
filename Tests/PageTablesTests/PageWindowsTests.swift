import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PageTables

private let windowBase = VirtualAddress(0xffff_f000_0000_0000)

/// A machine whose processors cache translations, stale ones included, and reach page windows by them.
private final class WindowFixture: @unchecked Sendable {
  let host: SimulatedMachine
  let frames: TestFrames
  let tables: PageMap
  private let memory = UnsafeMutableRawPointer.allocate(byteCount: 8192, alignment: 64)
  private let storage: [UnsafeMutableRawPointer]
  let buffers: [TranslationBuffer]
  /// Pages that were invalidated; the last address stands for all.
  private var invalidated: [UInt64] = []
  private let lock = NSLock()

  init(processors: Int = 2, prepares: Bool = true) throws {
    host = SimulatedMachine(memory: .mebibytes(16), processors: processors)
    frames = TestFrames(16..<256)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: 8192)
    tables = try PageMap(
      in: memory, machine: host.machine, levels: .four, largestLeaf: .mebibytes2, frames: frames.source)
    storage = (0..<processors).map { _ in
      .allocate(byteCount: Int(TranslationBuffer.size.rawValue), alignment: 64)
    }
    buffers = storage.map { TranslationBuffer($0) }
    if prepares { try tables.prepareWindows(at: windowBase) }
  }

  deinit {
    memory.deallocate()
    for block in storage { block.deallocate() }
  }

  var windows: PageWindows { tables.windows }

  /// Runs `body` as a processor that caches translations of these tables.
  func run<R>(as processor: Int = 0, _ body: () throws -> R) rethrows -> R {
    try host.runAs(processor: processor) {
      let words = cp_processor()
      let before = words.pointee
      defer { words.pointee = before }
      words.pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
      words.pointee.invalidate = { context, address in
        Unmanaged<WindowFixture>.fromOpaque(context!).takeUnretainedValue().invalidate(address)
      }
      words.pointee.find_frame = { context, address, isWrite in
        let bed = Unmanaged<WindowFixture>.fromOpaque(context!).takeUnretainedValue()
        return
          (bed.buffers[Int(cp_processor_index())].reach(
            VirtualAddress(address), isWrite ? .write : .read, bed.tables) ?? .none).rawValue
      }
      words.pointee.root = UnsafeRawPointer(host.machine.directMap.pointer(to: tables.root))
      return try body()
    }
  }

  private func invalidate(_ address: UInt64) {
    let buffer = buffers[Int(cp_processor_index())]
    if address == .max { buffer.invalidate(0, 1 << 52) } else { buffer.invalidate(address, 1) }
    lock.withLock { invalidated.append(address) }
  }

  func takeInvalidated() -> [UInt64] {
    lock.withLock {
      defer { invalidated = [] }
      return invalidated
    }
  }

  /// Fills a frame with words that say which they are.
  func stamp(_ frame: UInt32, _ value: UInt64) {
    let words = host.machine.directMap.pointer(to: FrameNumber(frame))
      .assumingMemoryBound(to: UInt64.self)
    for i in 0..<512 { words[i] = value << 16 | UInt64(i) }
  }

  func word(_ frame: UInt32, _ index: Int) -> UInt64 {
    host.machine.directMap.pointer(to: FrameNumber(frame)).load(
      fromByteOffset: index * 8, as: UInt64.self)
  }

  func open(_ first: UInt32, _ second: UInt32, for access: AccessKind = .read) -> OpenWindow {
    windows.open(FrameNumber(first), FrameNumber(second), for: access)
  }

  func check(line: UInt = #line) {
    if let broken = tables.checkInvariants() { XCTFail("\(broken)", line: line) }
    XCTAssertEqual(tables.tableCount.rawValue, UInt64(frames.out.count), line: line)
    XCTAssertEqual(tables.mappedCount, .zero, line: line)
  }
}

extension OpenWindow {
  /// The two words on both sides of the border between the frames.
  fileprivate borrowing func border() -> [UInt64] {
    withBytes(at: 4088, count: 16) {
      [$0.load(as: UInt64.self), $0.load(fromByteOffset: 8, as: UInt64.self)]
    }
  }
}

/// Both words of the border between frames that were stamped with `first` and `second`.
private func border(_ first: UInt64, _ second: UInt64) -> [UInt64] { [first << 16 | 511, second << 16] }

final class PageWindowsTests: XCTestCase {
  // MARK: Contents

  func testAWindowShowsTwoFramesOneBehindTheOther() throws {
    let bed = try WindowFixture()
    bed.run {
      bed.stamp(1000, 1)
      bed.stamp(900, 2)
      let window = bed.open(1000, 900)
      XCTAssertEqual(window.address, windowBase)
      XCTAssertEqual(window.border(), border(1, 2))
      // All of it, and each straddle of a few bytes.
      window.withBytes(at: 0, count: 8192) { bytes in
        for i in 0..<1024 {
          let expected = UInt64(i < 512 ? 1 : 2) << 16 | UInt64(i & 511)
          XCTAssertEqual(bytes.load(fromByteOffset: i * 8, as: UInt64.self), expected)
        }
        for offset in 4080..<4104 {
          let part = window.withBytes(at: offset, count: 24) { Array($0) }
          XCTAssertEqual(part, Array(bytes[offset..<offset + 24]))
        }
      }
      for (page, frame) in [(UInt64(0), UInt32(1000)), (1, 900)] {
        let found = bed.tables.translate(windowBase + PageCount(page))
        XCTAssertEqual(found?.physical.frame, FrameNumber(frame))
        XCTAssertEqual(found?.protection, .kernelReadOnly)
      }
      XCTAssertNil(bed.tables.translate(windowBase + PageCount(UInt64(2))))
      bed.check()
      window.close()
      XCTAssertNil(bed.tables.translate(windowBase))
      XCTAssertNil(bed.tables.translate(windowBase + PageCount.one))
      bed.check()
    }
  }

  func testWritesReachBothFramesAndNoOtherByte() throws {
    let bed = try WindowFixture()
    bed.run {
      bed.stamp(1000, 1)
      bed.stamp(1001, 2)
      bed.windows.withMutableBytes(of: FrameNumber(1000), FrameNumber(1001), at: 4080, count: 32) { bytes in
        XCTAssertEqual(bytes.load(as: UInt64.self), 1 << 16 | 510)
        bytes.storeBytes(of: 7, toByteOffset: 8, as: UInt64.self)
        bytes.storeBytes(of: 8, toByteOffset: 16, as: UInt64.self)
        // A neighbour's bytes, which another processor writes at the same time.
        bed.stamp(1000, 3)
      }
      XCTAssertEqual([bed.word(1000, 510), bed.word(1000, 511)], [1 << 16 | 510, 7])
      XCTAssertEqual([bed.word(1001, 0), bed.word(1001, 1)], [8, 2 << 16 | 1])
      XCTAssertEqual(bed.word(1000, 509), 3 << 16 | 509, "a neighbour's bytes were written back")
      XCTAssertEqual(bed.word(1001, 2), 2 << 16 | 2)
      bed.check()
    }
  }

  func testAWindowOpenForReadingCannotBeWritten() throws {
    let bed = try WindowFixture()
    bed.run {
      bed.stamp(1000, 1)
      let reports = bed.host.faults {
        let window = bed.open(1000, 1001)
        XCTAssertFalse(bed.tables.translate(windowBase)!.protection.contains(.writable))
        window.withMutableBytes(at: 0, count: 8) { $0.storeBytes(of: 9, as: UInt64.self) }
        window.close()
      }
      XCTAssertEqual(reports.map(\.kind), [.notMapped])
      XCTAssertEqual(bed.word(1000, 0), 1 << 16)
    }
  }

  func testAnInterruptOpensItsOwnWindowWhileAThreadHasOneOpen() throws {
    let bed = try WindowFixture()
    bed.run {
      for frame in UInt32(1000)..<1004 { bed.stamp(frame, UInt64(frame)) }
      let window = bed.open(1000, 1001, for: .write)
      var seen: [UInt64] = []
      var depths: [WindowPlace.Depth?] = []
      bed.host.withInterrupts(
        seed: 1, oneIn: 1,
        handler: {
          let inner = bed.open(1002, 1003)
          depths.append(bed.windows.place(of: inner.address)?.depth)
          seen += inner.border()
          inner.close()
        },
        {
          for _ in 0..<3 {
            cp_interrupts_restore(cp_interrupts_disable())
            XCTAssertEqual(window.border(), border(1000, 1001))
          }
        })
      XCTAssertEqual(seen, (0..<3).flatMap { _ in border(1002, 1003) })
      XCTAssertEqual(depths, [.interrupt, .interrupt, .interrupt])
      XCTAssertEqual(bed.windows.place(of: window.address)?.depth, .thread)
      window.close()
      XCTAssertEqual(cp_pins(), 0)
      bed.check()
    }
  }

  func testTwoProcessorsHaveWindowsSideBySide() throws {
    let bed = try WindowFixture(processors: 4)
    for frame in UInt32(1000)..<1008 { bed.stamp(frame, UInt64(frame)) }
    func nest(_ processor: Int) {
      guard processor < 4 else { return bed.check() }
      bed.run(as: processor) {
        let first = UInt32(1000 + 2 * processor)
        let window = bed.open(first, first + 1)
        XCTAssertEqual(bed.windows.place(of: window.address)?.processor.rawValue, UInt32(processor))
        nest(processor + 1)
        XCTAssertEqual(window.border(), border(UInt64(first), UInt64(first) + 1))
        window.close()
      }
    }
    nest(0)
    bed.check()
  }

  // MARK: Translations

  /// The next window at the same address shows its own frames, though the processor caches translations.
  func testNoWindowIsReadThroughTheTranslationsOfTheOneBefore() throws {
    let bed = try WindowFixture()
    for frame in UInt32(1000)..<1010 { bed.stamp(frame, UInt64(frame)) }
    bed.run {
      for turn in 0..<8 as Range<UInt32> {
        let window = bed.open(1000 + turn, 1001 + turn)
        XCTAssertEqual(window.border(), border(1000 + UInt64(turn), 1001 + UInt64(turn)))
        window.close()
        for page in 0..<2 as Range<UInt64> {
          let number = windowBase.rawValue >> Page.shift + page
          XCTAssertNil(bed.buffers[0].find(number, .read), "a closed window is still translated")
        }
      }
    }
  }

  /// A window that was read-only is written the next time.
  func testRightsOfTheWindowBeforeAreNotCached() throws {
    let bed = try WindowFixture()
    bed.stamp(1000, 1)
    bed.stamp(1001, 2)
    bed.run {
      let reader = bed.open(1000, 1001)
      XCTAssertEqual(reader.border(), border(1, 2))
      reader.close()
      let writer = bed.open(1000, 1001, for: .write)
      writer.withMutableBytes(at: 4088, count: 16) { $0.storeBytes(of: 5, as: UInt64.self) }
      writer.close()
      XCTAssertEqual(bed.word(1000, 511), 5)
    }
  }

  func testClosingInvalidatesTwoPagesOfThisProcessorAlone() throws {
    let bed = try WindowFixture()
    bed.run {
      let window = bed.open(1000, 1001)
      XCTAssertEqual(bed.takeInvalidated(), [])
      window.close()
      XCTAssertEqual(bed.takeInvalidated(), [windowBase.rawValue, windowBase.rawValue + 4096])
    }
  }

  /// Another processor translated the window ahead of time, and keeps that. It opens its own windows elsewhere, and
  /// the window's processor never meets it.
  func testATranslationThatAnotherProcessorKeepsIsNeverUsed() throws {
    let bed = try WindowFixture()
    for frame in UInt32(1000)..<1006 { bed.stamp(frame, UInt64(frame)) }
    bed.run {
      bed.open(1000, 1001).close()
      let window = bed.open(1002, 1003)
      XCTAssertEqual(bed.buffers[1].reach(windowBase, .read, bed.tables), FrameNumber(1002))
      window.close()
    }
    XCTAssertEqual(bed.buffers[1].find(windowBase.rawValue >> Page.shift, .read), FrameNumber(1002))
    bed.run(as: 1) {
      let window = bed.open(1004, 1005)
      XCTAssertEqual(window.border(), border(1004, 1005))
      window.close()
    }
    bed.run {
      let window = bed.open(1004, 1005)
      XCTAssertEqual(window.border(), border(1004, 1005))
      window.close()
    }
  }

  /// A frame that gets another memory type must not be cached through such a translation.
  func testAChangeOfMemoryTypeInvalidatesWindowsOnEveryProcessor() throws {
    let bed = try WindowFixture()
    try bed.run {
      try bed.tables.map(va(0), to: pa(1000), count: .one, protection: .kernelData)
      _ = bed.takeInvalidated()
      try bed.tables.protect(va(0), count: .one, .kernelReadOnly)
      XCTAssertEqual(bed.takeInvalidated(), [va(0).rawValue])
      try bed.tables.setAttribute(va(0), count: .one, .uncached)
      XCTAssertEqual(bed.takeInvalidated(), [.max])
      bed.tables.unmap(va(0), count: .one)
    }
  }

  func testProcessorsInThreadsReadTheirOwnWindows() throws {
    let bed = try WindowFixture(processors: 4)
    for frame in UInt32(1000)..<1040 { bed.stamp(frame, UInt64(frame)) }
    bed.host.onThreads(4) { processor in
      bed.run(as: processor) {
        for turn in 0..<2000 {
          let first = UInt32(1000 + processor * 10 + turn % 9)
          let window = bed.open(first, first + 1)
          XCTAssertEqual(window.border(), border(UInt64(first), UInt64(first) + 1))
          window.close()
        }
      }
    }
    bed.check()
  }

  // MARK: Memory

  func testWindowsOpenWhileEveryAllocationFails() throws {
    let bed = try WindowFixture()
    for frame in UInt32(1000)..<1004 { bed.stamp(frame, UInt64(frame)) }
    bed.frames.limit = 0
    bed.run {
      bed.host.failures.pointee.countdown = 0
      for _ in 0..<1000 {
        let window = bed.open(1000, 1001)
        XCTAssertEqual(window.border(), border(1000, 1001))
        window.close()
      }
      XCTAssertFalse(bed.host.failures.pointee.hasFailed, "an allocation point was passed")
      bed.host.failures.pointee.countdown = -1
      bed.check()
    }
  }

  func testTheTablesOfWindowsArePreparedOrNoneIs() throws {
    // 130 processors: three tables of windows below two others.
    for processors in [1, 4, 64, 130] {
      let bed = try WindowFixture(processors: processors, prepares: false)
      let before = bed.frames.out
      let needed = 2 + (processors + 63) / 64
      for limit in 0..<needed {
        bed.frames.limit = before.count + limit
        XCTAssertThrowsError(try bed.tables.prepareWindows(at: windowBase)) {
          XCTAssertEqual($0 as? PageTableError, .noMemory)
        }
        XCTAssertEqual(bed.frames.out, before)
        bed.check()
      }
      bed.frames.limit = .max
      try bed.tables.prepareWindows(at: windowBase)
      XCTAssertEqual(bed.frames.out.count, before.count + needed)
      bed.check()
      bed.stamp(1000, 1)
      bed.stamp(1001, 2)
      for processor in 0..<processors {
        bed.run(as: processor) {
          let window = bed.open(1000, 1001)
          XCTAssertEqual(window.border(), border(1, 2))
          XCTAssertEqual(bed.windows.place(of: window.address)?.processor.rawValue, UInt32(processor))
          window.close()
        }
      }
    }
  }

  func testNothingElseIsMappedInTheWindows() throws {
    let bed = try WindowFixture()
    let last = windowBase + PageCount(UInt64(15))
    for (address, count) in [
      (windowBase, 1), (windowBase + PageCount(UInt64(2)), 1), (last, 1),
      (VirtualAddress(windowBase.rawValue - 4096), 2), (last, 5),
      (VirtualAddress(windowBase.rawValue - 4096), 40),
    ] as [(VirtualAddress, UInt64)] {
      let reports = try bed.host.faults {
        try bed.tables.map(address, to: pa(1000), count: PageCount(count), protection: .kernelData)
        try bed.tables.prepare(address, count: PageCount(count))
        bed.tables.unprepare(address, count: PageCount(count))
        bed.tables.unmap(address, count: PageCount(count))
      }
      XCTAssertEqual(reports.map(\.kind), Array(repeating: .badConstraint, count: 4))
      bed.check()
    }
    let behind = windowBase + PageCount(UInt64(16))
    try bed.tables.map(behind, to: pa(1000), count: .one, protection: .kernelData)
    bed.tables.unmap(behind, count: .one)
    bed.check()
  }

  func testABrokenPlaceIsFound() throws {
    let bed = try WindowFixture()
    let walker = Walker(base: bed.host.machine.directMap.base, root: bed.tables.root.rawValue, levels: 4)
    bed.run {
      let window = bed.open(1000, 1001, for: .write)
      let (word, level) = walker.word(windowBase.rawValue)!
      XCTAssertEqual(level, 1)
      XCTAssertEqual(
        walker.walk(windowBase.rawValue + 4096 + 5),
        Walked(
          physical: 1001 << 12 | 5, pageShift: 12, writable: true, executable: false, global: true,
          memoryType: 6))
      let entry = word.pointee
      for bit in [1, 3, 4, 5, 6, 7, 8, 11, 52, 62, 63] as [UInt64] {
        word.pointee = entry ^ 1 << bit
        XCTAssertEqual(bed.tables.checkInvariants().map { "\($0)".prefix(4) }, "PT-7", "bit \(bit)")
      }
      word.pointee = entry
      window.close()
    }
    bed.check()
  }

  func testAnOpenWindowIsPartOfTheProofThatNoCodeCanBeWritten() throws {
    let bed = try WindowFixture()
    try bed.tables.map(va(0), to: pa(1000), count: .one, protection: .kernelText)
    bed.run {
      let reader = bed.open(1000, 1001)
      XCTAssertNil(bed.tables.proveWriteXorExecute())
      reader.close()
      let writer = bed.open(1001, 1000, for: .write)
      XCTAssertEqual(bed.tables.proveWriteXorExecute()?.writableAt, windowBase + PageCount.one)
      writer.close()
      XCTAssertNil(bed.tables.proveWriteXorExecute())
    }
    bed.tables.unmap(va(0), count: .one)
  }

  // MARK: Misuse

  private func misuse(_ bed: WindowFixture, _ body: () -> Void) -> [String] {
    bed.host.faults(in: body).map {
      XCTAssertEqual($0.kind, .windowMisuse)
      return "\($0.what)"
    }
  }

  func testASecondWindowAtOneDepthIsReported() throws {
    let bed = try WindowFixture()
    for frame in UInt32(1000)..<1004 { bed.stamp(frame, UInt64(frame)) }
    bed.run {
      let outer = bed.open(1000, 1001)
      var reports: [FaultReport] = []
      reports = bed.host.faults {
        let inner = bed.open(1002, 1003)
        inner.withBytes(at: 0, count: 16) { XCTAssertEqual($0.count, 16) }
        inner.close()
      }
      XCTAssertEqual(reports.map(\.kind), [.windowMisuse])
      XCTAssertEqual(reports.first?.subject, windowBase.rawValue)
      XCTAssertNotEqual(reports.first?.openedAt, .unknown)
      XCTAssertEqual(outer.border(), border(1000, 1001), "the report has changed something")
      XCTAssertEqual(cp_pins(), 1)
      outer.close()
      XCTAssertEqual(cp_pins(), 0)
      let again = bed.open(1002, 1003)
      XCTAssertEqual(again.border(), border(1002, 1003))
      again.close()
      bed.check()
    }
  }

  func testASleepWithAWindowOpenIsReported() throws {
    let bed = try WindowFixture()
    bed.run {
      let queue = WaitQueue("a test")
      let thread = ThreadHandle(rawValue: 1)
      let window = bed.open(1000, 1001)
      XCTAssertEqual(
        misuse(bed) {
          XCTAssertFalse(queue.sleep(queue.ticket(), until: Tick(0), on: bed.host.machine))
          bed.host.machine.join(thread)
        }, Array(repeating: "a thread sleeps with a page window open, on processor", count: 2))
      window.close()
      XCTAssertEqual(
        misuse(bed) { _ = queue.sleep(queue.ticket(), until: Tick(0), on: bed.host.machine) }, [])
    }
  }

  func testAnotherProcessorsUseOfAWindowIsReported() throws {
    let bed = try WindowFixture()
    bed.stamp(1000, 1)
    let what = "the page window of another processor was used"
    var held: OpenWindow?
    bed.run { held = bed.open(1000, 1001) }
    XCTAssertEqual(
      misuse(bed) { bed.run(as: 1) { _ = held?.withBytes(at: 0, count: 8) { $0.count } } }, [what])
    XCTAssertEqual(misuse(bed) { bed.run(as: 1) { held.take()?.close() } }, [what])
    XCTAssertNotNil(bed.tables.translate(windowBase), "the report has changed something")
  }
}
