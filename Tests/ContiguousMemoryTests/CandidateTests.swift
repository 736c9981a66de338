import HostMachine
import MemoryPrimitives
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import ContiguousMemory

final class CandidateTests: XCTestCase {
  let twoMebibytes = PageCount(UInt64(512))
  let aligned = RunConstraints(alignment: Alignment(2 << 20)!)

  func found(_ search: RunSearch.Answer, line: UInt = #line) -> RunCandidate? {
    if case .found(let candidate) = search { return candidate }
    XCTFail("not found", line: line)
    return nil
  }

  func testAnAlignedRequestCostsAStepAPageblock() throws {
    for gibibytes in [1, 2] as [UInt64] {
      let system = try FrameAllocatorFixture(frames: [(0, 159), (256, gibibytes << 18 - 256)])
      let memory = system.memory!
      _ = fillWithPages(memory)
      // A wired page in every second pageblock, and one pageblock with less to do than the others.
      for pageblock in 1..<UInt32(gibibytes * 512) - 10 where pageblock % 2 == 0 {
        wirePage(memory, pageblock * 512 + 99)
      }
      for frame in 0..<UInt32(200) { freePage(memory, 101 * 512 + 2 * frame) }
      let cost = steps(memory) {
        let candidate = found($0.candidate(run: twoMebibytes, where: aligned))!
        XCTAssertEqual(candidate.run.first.rawValue, 101 * 512)
        XCTAssertEqual(candidate.free.rawValue, 200)
        XCTAssertEqual(candidate.movable.rawValue, 312)
      }
      XCTAssertLessThanOrEqual(cost, gibibytes * 512 + 64)
      let started = DispatchTime.now().uptimeNanoseconds
      for _ in 0..<1000 { _ = memory.candidate(run: twoMebibytes, where: aligned) }
      let each = (DispatchTime.now().uptimeNanoseconds - started) / 1000
      print("\(gibibytes) GiB: \(cost) steps, \(each) ns a search")
      // Page by page: the same place, or one as cheap that needs no alignment.
      let anywhere = steps(memory) { _ = found($0.candidate(run: twoMebibytes)) }
      print("\(gibibytes) GiB: \(anywhere) steps anywhere")
      XCTAssertLessThanOrEqual(anywhere, gibibytes * 512 * 2 + 8000)
      // Nothing found: each pageblock has a wired page.
      for pageblock in 0..<UInt32(gibibytes * 512) {
        let frame = FrameNumber(pageblock * 512 + 301)
        if memory.record(frame)?.snapshot.isMovable ?? false { wirePage(memory, frame.rawValue) }
      }
      let vain = steps(memory) {
        guard case .blocked(let candidate) = $0.candidate(run: twoMebibytes, where: aligned)
        else { return XCTFail("found") }
        XCTAssertEqual(candidate.unmovable, .one)
        let owners = memory.owners(of: candidate.run, .unmovable)
        XCTAssertEqual(owners.count, 1)
        XCTAssertEqual(owners.first?.first.rawValue, candidate.run.first.rawValue + 301)
      }
      XCTAssertLessThanOrEqual(vain, gibibytes * 512 * 4 + 300)
      print("\(gibibytes) GiB: \(vain) steps without success")
    }
  }

  func testACheaperRunComesFirst() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 8192)])
    let memory = system.memory!
    _ = fillWithPages(memory)
    func dirty(_ frame: UInt32) {
      memory.record(FrameNumber(frame))!.pageFlags.insert(.dirty)
      memory.countDirty(FrameNumber(frame))
    }
    func first() -> UInt32? { found(memory.candidate(run: twoMebibytes, where: aligned))?.run.first.rawValue }
    // All alike: the highest. Then the one that is clean.
    for frame in 0..<UInt32(8192)
    where memory.record(FrameNumber(frame))!.role == .pageable && frame / 512 != 5 {
      dirty(frame)
    }
    XCTAssertEqual(first(), 5 * 512)
    // One page less to do is better than all of them clean.
    let record = memory.record(FrameNumber(3 * 512 + 7))!
    record.pageFlags.remove(.dirty)
    memory.countClean(FrameNumber(3 * 512 + 7))
    freePage(memory, 3 * 512 + 7)
    XCTAssertEqual(first(), 3 * 512)
    let answer = found(memory.candidate(run: twoMebibytes, where: aligned))!
    XCTAssertEqual(answer.free, .one)
    XCTAssertEqual(answer.movable.rawValue, 511)
    XCTAssertEqual(answer.dirty.rawValue, 511)
    // A page that is held makes it dearer than the clean one.
    memory.record(FrameNumber(3 * 512 + 100))!.busyWord = BusyWord(rawValue: 1 << 12)
    XCTAssertEqual(first(), 5 * 512)
    // As does one that is being written.
    memory.record(FrameNumber(5 * 512 + 100))!.busyWord = BusyWord(rawValue: 1 << 22)
    memory.record(FrameNumber(3 * 512 + 100))!.busyWord = .none
    XCTAssertEqual(first(), 3 * 512)
    system.check()
  }

  func testOldDevicesGetLowMemory() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 159), (256, 8192)])
    let memory = system.memory!
    _ = fillWithPages(memory)
    for frame in stride(from: UInt32(256), to: 4096, by: 20) { wirePage(memory, frame) }
    for frame in stride(from: UInt32(3), to: 159, by: 20) { wirePage(memory, frame) }
    let below = PhysicalAddress(16 << 20)
    // Frames 4 to 22, 24 to 42, and so on are movable: 16 in a row that cross no 64 KiB.
    let constraints = RunConstraints(high: below, boundary: Alignment(64 << 10)!)
    for frame in stride(from: UInt32(262), to: 4096, by: 20) { wirePage(memory, frame) }
    guard case .blocked = memory.candidate(run: PageCount(UInt64(16)), where: constraints) else {
      // 16 frames that cross nothing begin at a multiple of 16.
      return XCTAssertEqual(
        found(memory.candidate(run: PageCount(UInt64(16)), where: constraints))!.run.first.rawValue % 16, 0)
    }
    for frame in 1600..<UInt32(1616) where memory.record(FrameNumber(frame))!.snapshot.isUnmovable {
      unwirePage(memory, frame)
    }
    let candidate = found(memory.candidate(run: PageCount(UInt64(16)), where: constraints))!
    XCTAssertEqual(candidate.run.first.rawValue, 1600)
    XCTAssertEqual(candidate.movable.rawValue, 16)
  }

  func testARunThatWasTriedIsNotTriedAgain() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 4096)])
    let memory = system.memory!
    _ = fillWithPages(memory)
    var tried: [FrameRun] = []
    var excluding = ExcludedRuns()
    for _ in 0..<4 {
      let candidate = found(memory.candidate(run: twoMebibytes, where: aligned, excluding: excluding))!
      XCTAssertFalse(tried.contains(candidate.run))
      tried.append(candidate.run)
      excluding.add(candidate.run)
    }
    // A fifth one takes the place of the first.
    let fifth = found(memory.candidate(run: twoMebibytes, where: aligned, excluding: excluding))!
    XCTAssertFalse(tried.contains(fifth.run))
    excluding.add(fifth.run)
    XCTAssertEqual(
      found(memory.candidate(run: twoMebibytes, where: aligned, excluding: excluding))?.run, tried[0])
    // Everything tried: blocked by nothing but that.
    let low = RunConstraints(high: PhysicalAddress(8 << 20), alignment: Alignment(4 << 20)!)
    var all = ExcludedRuns()
    all.add(FrameRun(first: FrameNumber(0), count: PageCount(UInt64(4096))))
    guard case .blocked(let candidate) = memory.candidate(run: twoMebibytes, where: low, excluding: all)
    else { return XCTFail("found what was excluded") }
    XCTAssertEqual(candidate.unmovable, .zero)
    XCTAssertEqual(memory.owners(of: candidate.run, .unmovable).count, 0)
  }

  /// All frames of what was tried are left alone, and all frames in the way of a run are named.
  func testNoFrameOfARunThatWasTriedIsTriedAgain() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 2048)])
    let memory = system.memory!
    _ = fillWithPages(memory)
    let count = PageCount(UInt64(16))
    let range = RunConstraints(low: PhysicalAddress(1000 << 12), high: PhysicalAddress(1060 << 12))
    // The cheapest places are in and around what was tried.
    let tried = FrameRun(first: FrameNumber(1010), count: PageCount(UInt64(30)))
    for frame in 1011..<UInt32(1040) { freePage(memory, frame) }
    var excluding = ExcludedRuns()
    excluding.add(tried)
    let candidate = found(memory.candidate(run: count, where: range, excluding: excluding))!
    XCTAssertGreaterThanOrEqual(candidate.run.first, tried.end)
    // Each frame in the way is counted.
    for frame in stride(from: UInt32(1003), to: 1060, by: 10) {
      for offset in 0..<3 as Range<UInt32> where !(1011..<1040).contains(frame + offset) {
        wirePage(memory, frame + offset)
      }
    }
    let narrow = RunConstraints(low: PhysicalAddress(1040 << 12), high: PhysicalAddress(1060 << 12))
    guard case .blocked(let best) = memory.candidate(run: count, where: narrow) else {
      return XCTFail("found")
    }
    XCTAssertEqual(best.unmovable.rawValue, 5)
    let owners = memory.owners(of: best.run, .unmovable)
    XCTAssertEqual(owners.frames, best.unmovable)
  }

  /// The owner of most frames in the way comes first, however many others have a few.
  func testOwnersAreCountedAndTheLargestComesFirst() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 4096)])
    let memory = system.memory!
    let pages = fillWithPages(memory).filter { $0.rawValue >= 1024 && $0.rawValue < 2048 }
    for (i, frame) in pages.enumerated() {
      memory.record(frame)!.owner = i % 3 == 1 ? 7 : UInt32(20 + i % 40)
      if i % 3 != 2 { wirePage(memory, frame.rawValue) }
    }
    let run = FrameRun(first: FrameNumber(1024), count: PageCount(UInt64(1024)))
    let owners = memory.owners(of: run, .unmovable)
    XCTAssertEqual(owners.frames.rawValue, UInt64(pages.indices.count { $0 % 3 != 2 }))
    let first = try XCTUnwrap(owners.first)
    XCTAssertEqual(first.owner, 7)
    XCTAssertEqual(first.role, .pageable)
    XCTAssertEqual(first.frames.rawValue, UInt64(pages.indices.count { $0 % 3 == 1 }))
    XCTAssertEqual(first.first, pages[1])
    XCTAssertEqual(memory.owners(of: run, .claimed).count, 0)
    for i in 1..<owners.count {
      XCTAssertGreaterThanOrEqual(owners.list[i - 1]!.frames, owners.list[i]!.frames)
    }
  }

  func testAnImpossibleRequestIsAnsweredNever() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 159), (256, 4096)], occupied: [(1024, 3, .image)])
    let memory = system.memory!
    func isNever(_ count: UInt64, _ where: RunConstraints) -> Bool {
      if case .never = memory.candidate(run: PageCount(count), where: `where`) { return true }
      return false
    }
    XCTAssertTrue(isNever(0, RunConstraints()))
    XCTAssertTrue(isNever(5000, RunConstraints()))
    XCTAssertTrue(isNever(.max, RunConstraints()))
    XCTAssertTrue(isNever(64, RunConstraints(boundary: Alignment(64 << 10)!)))
    XCTAssertTrue(isNever(160, RunConstraints(high: PhysicalAddress(1 << 20))))
    XCTAssertTrue(
      isNever(512, RunConstraints(low: PhysicalAddress(3 << 20), high: PhysicalAddress(5 << 20))))
    XCTAssertFalse(isNever(159, RunConstraints(high: PhysicalAddress(1 << 20))))
  }

  func testExplainCountsEmptiableFramesAndNamesTheBlockers() throws {
    let system = try FrameAllocatorFixture(frames: [(0, 4096)])
    let memory = system.memory!
    _ = fillWithPages(memory)
    XCTAssertNil(memory.freeRun(twoMebibytes, where: aligned))
    let answer = found(memory.candidate(run: twoMebibytes, where: aligned))
    XCTAssertEqual(answer?.movable.rawValue, 512)
    XCTAssertEqual(memory.longestEmptiableRun()?.count, memory.recordsRun.first - FrameNumber(0))
    for pageblock in 0..<UInt32(8) where memory.record(FrameNumber(pageblock * 512 + 9))!.role == .pageable {
      wirePage(memory, pageblock * 512 + 9)
    }
    guard case .blocked(let blocked) = memory.candidate(run: twoMebibytes, where: aligned) else {
      return XCTFail("found")
    }
    XCTAssertEqual(blocked.unmovable, .one)
    let owners = memory.owners(of: blocked.run, .unmovable)
    XCTAssertEqual(owners.count, 1)
    XCTAssertEqual(owners.first?.role, .pageable)
    XCTAssertEqual(owners.first.map { memory.whatIs($0.first).busyWord }, .wiredOnce)
    XCTAssertEqual(memory.longestEmptiableRun()?.count.rawValue, 511)
  }
}
