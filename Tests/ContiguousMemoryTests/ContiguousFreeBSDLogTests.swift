import ContiguousMemory
import HostMachine
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

@testable import Paging

/// The bugs that fifteen years of FreeBSD's commit log shows, each as the test that would have found it here. The
/// words at their heads are the log's.
final class ContiguousFreeBSDLogTests: XCTestCase {
  // "it walked backwards from the end of memory without accounting for how many pages it needed. Potentially,
  // nonexistant pages could have been mapped."
  func testARunIsNotWalkedPastTheEndOfTheLastSegment() throws {
    for fills in [false, true] {
      let segments: [(UInt64, UInt64)] = [(256, 400), (700, 100), (1000, 37)]
      let system = try TestSystem(runs: segments)
      let area = fills ? try system.fillMemory(spare: 120) : try system.area(1)
      for (first, count) in segments.dropFirst() {
        for length in 1...40 as ClosedRange<UInt64> where length <= count {
          for low in [first, first + count - length, 256] {
            let wanted = request(length, low: low)
            guard case .success(let run) = system.ask(wanted) else { continue }
            system.checkGranted(run, wanted)
            let isInOne = segments.contains {
              UInt64(run.first.rawValue) >= $0.0 && UInt64(run.end.rawValue) <= $0.0 + $0.1
            }
            XCTAssertTrue(isInOne, "\(run)")
            system.give(run)
          }
        }
      }
      system.check()
      if fills { try system.verify(area) }
      // One page more than there is at the end.
      let fresh = try TestSystem(runs: segments)
      _ = fills ? try fresh.fillMemory(spare: 120) : try fresh.area(1)
      for (first, count) in segments {
        let low = first + count - 5
        XCTAssertEqual(refusal(fresh.ask(request(6, low: low, high: low + 6)))?.answer, .never)
        XCTAssertEqual(
          refusal(fresh.ask(request(count + 1, low: first, high: first + count + 10)))?.answer, .never)
      }
      XCTAssertEqual(refusal(fresh.ask(request(38, low: 1000)))?.answer, .never)
      fresh.check()
    }
  }

  // "contigmalloc2() was always testing the first physical page for PG_ZERO, not the current page of interest."
  func testEveryPageIsZeroAndNotOnlyTheFirstOne() throws {
    for spare in [400, 150, 70] as [UInt64] {
      let system = try TestSystem()
      for frame in system.takeAll() {
        system.words(frame).update(repeating: 0x5a5a, count: 512)
        system.give(FrameRun(first: frame, count: .one))
      }
      // Dirty, clean, cached and taken ones, free ones with leftovers.
      let area = try system.fillMemory(spare: spare)
      for page in 0..<area.count where page % 3 == 0 && system.place(area, page).place == .resident {
        let one = FrameRun(first: system.frame(area, page), count: .one)
        _ = system.paging.launder(outOf: one, .all, atMost: .one)
        if page % 2 == 0 { _ = try system.holds(area, page, 1000 + page) }
      }
      let type = system.kmem.type(named: ShortName("test"))
      for named in [true, false] {
        let range =
          named
          ? try system.contiguous.contigmalloc(.kibibytes(256), type: type, contents: .zero)
          : try system.contiguous.kmemAllocContig(request(64, aligned: 64), contents: .zero)
        for page in 0..<64 as Range<UInt64> {
          let words = system.words(range.frames.first + PageCount(page))
          for word in 0..<512 where words[word] != 0 {
            XCTFail("page \(page), word \(word)")
            break
          }
          words.update(repeating: 7, count: 512)
        }
        if named {
          system.contiguous.contigfree(range.address, size: .kibibytes(256), type: type)
        } else {
          system.contiguous.kmemFreeContig(range)
        }
      }
      system.check()
      try system.verify(area)
    }
  }

  // "if we have to restart the scan because we are unable to acquire the vm object lock [...], we leak those free pages
  // already removed from the free queue."
  func testARunThatIsAbandonedLeaksNothing() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 200)
    let low = UInt64(system.frame(area, 100).rawValue) & ~63
    let wanted = request(64, low: low, high: low + 64)
    let pages = system.pages(of: area, in: frames(low, low + 64))
    let page = pages[pages.count / 2]
    let total = system.physical.freeCount + system.physical.count(.pageable)
    for turn in 0..<6 {
      if turn == 3 {
        // Again with memory short, where pages are written out instead of moved.
        let wasFree = system.takeAll()
        system.giveBack(wasFree.filter { frames(low, low + 64).contains($0) })
        system.giveBack(Array(wasFree.filter { !frames(low, low + 64).contains($0) }.prefix(40)))
      }
      let steps = Steps()
      let loaned = system.physical.count(.loaned)
      // Held once the run is isolated, because a run with a page that is held before is not begun.
      var held = FrameNumber.none
      let result: Result<FrameRun, ContiguousFailure>
      do throws(ContiguousFailure) {
        result = .success(
          try system.contiguous.allocContig(wanted) {
            steps.note($0)
            if case .isolated = $0, held == .none { held = try! system.paging.hold(area[page], .read) }
          })
      } catch {
        result = .failure(error)
      }
      let failure = try XCTUnwrap(refusal(result))
      XCTAssertEqual(failure.answer, .notNow)
      XCTAssertEqual(failure.blocker, held)
      XCTAssertEqual(steps.abandoned, [frames(low, low + 64)])
      XCTAssertEqual(system.physical.count(.contiguous), .zero)
      XCTAssertEqual(
        system.physical.freeCount + system.physical.count(.pageable) + loaned, total, "turn \(turn)")
      // All that was captured is free for anybody.
      for frame in low..<low + 64 where FrameNumber(UInt32(frame)) != held {
        XCTAssertEqual(system.physical.whatIs(FrameNumber(UInt32(frame))).role, .free)
      }
      system.check("turn \(turn)")
      system.paging.unhold(held)
      // Fill it again.
      let fresh = try system.area(63)
      try system.fill(fresh)
      system.release(fresh)
    }
    let run = try system.ask(wanted).get()
    system.give(run)
    try system.verify(area)
    system.check()
  }

  // "While it is necessary to verify that the page is still free [...], the physical contiguity of the page can not
  // change, making this check unnecessary. This check was wrong in that it could cause an out-of-bounds array access."
  func testARecheckDoesNotLookBeyondTheEndOfTheRun() throws {
    // Where free memory ends, and with free frames right behind.
    for behind in [0, 7] as [UInt32] {
      var moment = 0
      while true {
        let system = try TestSystem(runs: [(256, 512)])
        system.set("vm.reserve.normal", 0)
        let extent = try XCTUnwrap(system.physical.longestFreeRun())
        let end = extent.end.rawValue - behind
        let run = frames(UInt64(end) - 30, UInt64(end))
        let known = (extent.end.rawValue - 40..<extent.end.rawValue).map { FrameNumber($0) }
        // Frames one by one, so that the lock is let go between them; the last one of the run is to come.
        var taken: [FrameNumber] = []
        for frame in known where frame.rawValue % 2 == (end - 1) % 2 {
          try system.physical.allocate(frame: frame, role: .loaned)
          taken.append(frame)
        }
        let (first, last) = (taken.first { run.contains($0) }!, FrameNumber(end - 1))
        taken.removeAll { $0 == first || $0 == last }
        var isolation: TestIsolation?
        let happened = try system.preempting(
          at: moment,
          {
            // One that was passed already, and the last one.
            system.giveBack([first, last])
          }, { isolation = try system.physical.isolated(run, priority: .normal) })
        let mine = try XCTUnwrap(isolation)
        var captured: UInt64 = 0
        for frame in known {
          let isFree = !taken.contains(frame) && (happened || (frame != first && frame != last))
          XCTAssertEqual(
            system.physical.isCaptured(frame, mine), run.contains(frame) && isFree,
            "frame \(frame), \(moment)")
          if !run.contains(frame) && isFree { XCTAssertEqual(system.physical.whatIs(frame).role, .free) }
          if run.contains(frame) && isFree { captured += 1 }
        }
        XCTAssertEqual(system.physical.capturedCount(mine), PageCount(captured))
        system.check("moment \(moment)")
        system.physical.abandon(mine)
        if !happened { break }
        for frame in known where !taken.contains(frame) {
          XCTAssertEqual(system.physical.whatIs(frame).role, .free)
        }
        moment += 1
      }
      XCTAssertGreaterThan(moment, 1)
    }
  }

  // "contigmalloc1() and contigmalloc2() assumes that a page in PQ_CACHE can be unconditionally reused by busying and
  // freeing it. Unfortunatelly, when object happens to be not NULL, the code will set m->object to NULL [...],
  // resulting in page bucket hash table corruption and finally, a filesystem corruption".
  func testACachedPageOfALiveObjectIsReclaimedAndReadFromItsCopy() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 100)
    system.launderAll()
    // Half of them are back in use, the others stay cached.
    for page in 0..<area.count where page % 2 == 0 {
      XCTAssertTrue(try system.holds(area, page, 1000 + page))
    }
    let cached = (0..<area.count).filter { system.place(area, $0).place == .cached }
    XCTAssertGreaterThan(cached.count, 100)
    var runs: [FrameRun] = []
    while runs.count < 3 {
      let run = try system.ask(request(100, aligned: 4)).get()
      for i in 0..<100 as Range<UInt64> {
        system.words(run.first + PageCount(i)).update(repeating: 0xbad, count: 512)
      }
      runs.append(run)
    }
    system.check()
    let taken = cached.filter { system.place(area, $0).place == .swapped }
    XCTAssertGreaterThan(taken.count, 50)
    system.swapDisk.discardHistory()
    for page in taken.prefix(40) { XCTAssertTrue(try system.holds(area, page, 1000 + page)) }
    XCTAssertEqual(system.swapDisk.readCount, 40)
    system.check()
    for run in runs {
      for i in 0..<100 as Range<UInt64> {
        XCTAssertEqual(system.words(run.first + PageCount(i))[511], 0xbad)
      }
      system.give(run)
    }
    try system.verify(area)
    system.check()
  }

  // "panic 'vm_page_cache: caching a dirty page, ...': Access to the page must be restricted or removed before calling
  // vm_page_cache()."
  func testNoDirtyPageIsCached() throws {
    let system = try TestSystem(runs: [(256, 200)], swap: 64)
    let area = try system.area(3)
    let aside = system.takeAll(leaving: 60)
    var (moment, stale) = (0, 0)
    while true {
      try system.fill(area)
      let frame = system.frame(area, 1)
      var stamp: UInt64 = 1001
      let happened = system.preempting(
        at: moment,
        {
          let what = system.place(area, 1)
          if what.place == .resident, !what.busyWord.isXbusy {
            stamp = 40_000 + UInt64(moment)
            try! system.write(area, 1, stamp)
          } else if system.mapping(area, 1) == nil, what.place != .resident {
            stale += 1
          }
        },
        { system.paging.launder(.active, upTo: PageCount(3), referenced: .launder) })
      let what = system.physical.whatIs(frame)
      if what.role == .free, what.pageFlags.contains(.cached) {
        // The cached page has the content of its copy.
        XCTAssertTrue(system.holds(frame: frame, stamp), "moment \(moment)")
        XCTAssertNil(system.mapping(area, 1))
      }
      system.check("moment \(moment)")
      system.dropCached()
      XCTAssertTrue(try system.holds(area, 1, stamp), "moment \(moment)")
      if !happened { break }
      moment += 1
    }
    XCTAssertGreaterThan(moment, 20)
    XCTAssertGreaterThan(stale, 0)
    system.giveBack(aside)
  }

  // "a break statement that previously broke out of the enclosing switch was not changed. [...] This could result in
  // 'vm_page_insert: page already inserted' panics."
  func testAPageIsNotInsertedTwice() throws {
    let system = try TestSystem(runs: [(256, 200)], swap: 64)
    let stamps: [UInt64] = [0, 1001, 1002]
    for page in 0..<3 as Range<UInt64> {
      for kinds in [(AccessKind.read, AccessKind.read), (.write, .read), (.read, .write), (.write, .write)] {
        var moment = 0
        while true {
          // Of zeroes, in swap, cached.
          let area = try system.area(3)
          try system.write(area, 1, 1001)
          try system.write(area, 2, 1002)
          system.launderAll()
          system.dropCached()
          XCTAssertTrue(try system.holds(area, 2, 1002))
          system.launderAll()
          XCTAssertEqual(
            (0..<3).map { system.place(area, $0).place }, [.untouched, .swapped, .cached])
          let happened = system.preempting(
            at: moment,
            {
              guard !system.place(area, page).busyWord.isXbusy else { return }
              try! system.paging.fault(area[page], kinds.1)
            }, { try! system.paging.fault(area[page], kinds.0) })
          XCTAssertEqual(system.physical.count(.pageable), .one, "page \(page), moment \(moment)")
          XCTAssertEqual(system.paging.residentCount(area.object), .one)
          system.check("page \(page), moment \(moment)")
          XCTAssertTrue(try system.holds(area, page, stamps[Int(page)]))
          system.release(area)
          if !happened { break }
          moment += 1
        }
        XCTAssertGreaterThan(moment, 2)
      }
    }
  }

  // "malloc_type_allocated(..., 0) calls that occur when contigmalloc() has failed."
  func testFailedCallsAreNotCountedAsAllocations() throws {
    for strategy in [ContiguousStrategy.new, .old] { try countFailures(strategy) }
  }

  private func countFailures(_ strategy: ContiguousStrategy) throws {
    let system = try TestSystem(attaches: false)
    let area = try system.fillMemory(spare: 150)
    let type = system.kmem.type(named: ShortName("test"))
    let contiguous = system.contiguous
    contiguous.setStrategy(strategy)
    var failed: UInt64 = 0
    func expect(_ answer: ContiguousFailure.Answer?, _ body: () throws -> Void, line: UInt = #line) {
      XCTAssertThrowsError(try body(), "\(strategy)", line: line) {
        if let answer {
          XCTAssertEqual(($0 as? ContiguousFailure)?.answer, answer, "\(strategy)", line: line)
        }
      }
      failed += 1
      let known = system.kmem.describe(type)
      XCTAssertEqual(known.failed, failed, line: line)
      XCTAssertEqual(known.requests, 0, line: line)
      XCTAssertEqual(known.inUse, 0, line: line)
      XCTAssertEqual(known.bytes, .zero, line: line)
      XCTAssertEqual(system.statistic("vm.contig.granted"), 0, "granted, and failed", line: line)
      XCTAssertEqual(system.statistic("vm.contig.refused"), failed, line: line)
      system.check("", #filePath, line)
    }
    expect(.never) { _ = try contiguous.contigmalloc(.gibibytes(1), type: type) }
    expect(.never) { _ = try contiguous.contigmalloc(.zero, type: type) }
    let held = try system.paging.hold(area[0], .read)
    let only = request(1, low: UInt64(held.rawValue), high: UInt64(held.rawValue) + 1).constraints
    expect(.notNow) { _ = try contiguous.contigmalloc(.kibibytes(4), type: type, where: only) }
    system.paging.unhold(held)
    // Each point made to fail in turn; when there are no addresses, the frames were had, and went back.
    let free = system.physical.freeCount
    var unmapped = 0
    for nth: Int64 in 0... {
      func reached() -> UInt64 {
        system.host.failures.pointee.reached[Int(FailurePoint.kernelSpace.rawValue)]
      }
      let before = reached()
      system.host.failures.pointee.hasFailed = false
      system.host.failures.pointee.countdown = nth
      let range = try? contiguous.contigmalloc(.kibibytes(4), type: type)
      system.host.failures.pointee.countdown = -1
      if let range { contiguous.contigfree(range.address, size: .kibibytes(4), type: type) }
      XCTAssertEqual(system.physical.freeCount, free)
      // Past the last point.
      if !system.host.failures.pointee.hasFailed { break }
      if range != nil {
        // Another way was found.
        let known = system.kmem.describe(type)
        XCTAssertEqual(known.requests, system.statistic("vm.contig.granted"))
        continue
      }
      failed += 1
      if reached() > before { unmapped += 1 }
      XCTAssertEqual(system.kmem.describe(type).failed, failed)
      XCTAssertEqual(system.statistic("vm.contig.refused"), failed)
      XCTAssertEqual(system.statistic("vm.contig.granted"), system.kmem.describe(type).requests)
    }
    XCTAssertGreaterThan(unmapped, 0, "no mapping failed")
    system.check()
    try system.verify(area)
  }

  // "The RES size for a process may appear to be greater than its SIZE. This is believed to be due to mappings of the
  // same shared library page being wired twice."
  func testAPageWiredTwiceIsNotCountedTwice() throws {
    let system = try TestSystem()
    let area = try system.area(32)
    let other = try system.show(area.object)
    try system.paging.wire(area.address, PageCount(32), holes: .forbidden)
    let unmovable = system.physical.pageblockCounts(at: system.frame(area, 0))?.unmovable
    try system.paging.wire(other.address, PageCount(32), holes: .forbidden)
    try system.paging.wire(area.address, PageCount(16), holes: .allowed)
    XCTAssertEqual(system.paging.wiredCount, PageCount(32))
    XCTAssertEqual(system.statistic("vm.pages.wired"), 32)
    XCTAssertEqual(system.paging.residentCount(area.object), PageCount(32))
    XCTAssertEqual(system.physical.pageblockCounts(at: system.frame(area, 0))?.unmovable, unmovable)
    system.check()
    system.paging.unwire(area.address, PageCount(16))
    system.paging.unwire(area.address, PageCount(32))
    XCTAssertEqual(system.paging.wiredCount, PageCount(32))
    XCTAssertEqual(system.physical.pageblockCounts(at: system.frame(area, 0))?.unmovable, unmovable)
    system.paging.unwire(other.address, PageCount(32))
    XCTAssertEqual(system.paging.wiredCount, .zero)
    system.check()
  }

  // "Believed to back out of allocations and locks correctly"; "Callers must specify VM_MAP_WIRE_HOLESOK or
  // VM_MAP_WIRE_NOHOLES to express their intention explicitly."
  func testAWireThatFailsHalfWayBacksOut() throws {
    for holes in [HolePolicy.forbidden, .allowed] {
      let system = try TestSystem()
      let area = try system.area(50)
      try system.fill(area)
      system.launderAll()
      system.dropCached()
      system.swapDisk.discardHistory()
      // Every copy from the thirtieth on can't be read.
      var reads = 0
      system.atPoll = {
        reads += 1
        if reads == 30 {
          var faults = DeviceFaults(seed: 1)
          faults.failed = 1000
          system.disk.faults = faults
        }
      }
      XCTAssertFails(PagingError.inputOutput) {
        try system.paging.wire(area.address, PageCount(50), holes: holes)
      }
      system.atPoll = nil
      XCTAssertEqual(system.paging.wiredCount, .zero)
      XCTAssertEqual(system.paging.residentCount(area.object).rawValue, system.paging.count(.active).rawValue)
      for page in 0..<area.count { XCTAssertEqual(system.place(area, page).busyWord, .none) }
      system.check()
      system.disk.faults = DeviceFaults()
      try system.verify(area)
      // A run over all of them is not blocked by a wire that is left over.
      let first = (0..<area.count).map { system.frame(area, $0).rawValue }.min()!
      system.give(try system.ask(request(32, low: UInt64(first), high: UInt64(first) + 32)).get())
      system.check()
    }
  }

  // MARK: And those that the new contigmalloc was written for

  // "Instead of trying to throw a bunch of pages out to swap [...], only a range that can potentially
  // fulfill contigmalloc(9)'s request will have its contents paged out".
  func testNothingOutsideOfTheRunIsWrittenOrMoved() throws {
    for (strategy, isShort) in [
      (ContiguousStrategy.new, false), (.new, true), (.old, false), (.old, true),
    ] {
      let system = try TestSystem()
      let area = try system.fillMemory(spare: 220)
      // The free frames of a run can be spared, but none of its pages can be moved.
      let taken = isShort ? system.takeAll(leaving: 70) : []
      let before = system.frames(of: area)
      system.swapDisk.discardHistory()
      system.contiguous.setStrategy(strategy)
      let type = system.kmem.type(named: ShortName("test"))
      let steps = Steps()
      let wanted = request(64, aligned: 64)
      let range = try? system.contiguous.contigmalloc(
        .kibibytes(256), type: type, where: wanted.constraints, observe: steps.note)
      let run = range?.frames ?? frames(0, 0)
      let outside = system.swapDisk.written.filter { !run.contains($0) }.count
      var changed = 0
      for (page, frame) in before where !run.contains(frame) && system.frame(area, page) != frame {
        changed += 1
      }
      switch strategy {
      case .new:
        XCTAssertNotNil(range)
        XCTAssertEqual(outside, 0, "\(steps.names)")
        XCTAssertEqual(changed, 0)
        XCTAssertLessThanOrEqual(steps.moved + steps.written, 64)
        XCTAssertEqual(isShort, steps.written > 0)
      case .old:
        XCTAssertGreaterThan(outside, 64)
      }
      system.check()
      if let range { system.contiguous.contigfree(range.address, size: .kibibytes(256), type: type) }
      system.giveBack(taken)
      try system.verify(area)
    }
  }

  // "failing without bothering to do all the laundering on the third pass if allocation was not possible. This
  // effectively gives exactly two chances to launder enough contiguous memory".
  func testTheLastPassLaundersOnlyPagesThatItCanFree() throws {
    // The old strategy tries three times and launders twice.
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 120)
    for page in 0..<area.count where page % 8 == 0 {
      try system.paging.wire(area[page], .one, holes: .forbidden)
    }
    let type = system.kmem.type(named: ShortName("test"))
    system.contiguous.setStrategy(.old)
    let steps = Steps()
    XCTAssertThrowsError(
      try system.contiguous.contigmalloc(.mebibytes(1), type: type, observe: steps.note))
    XCTAssertEqual(
      steps.names, ["laundered: laundry", "laundered: inactive", "laundered: active"])
    system.check()
    // The new one asks no disk when no run can be emptied.
    system.swapDisk.discardHistory()
    system.contiguous.setStrategy(.new)
    let few = Steps()
    XCTAssertThrowsError(
      try system.contiguous.contigmalloc(.mebibytes(1), type: type, observe: few.note))
    XCTAssertEqual(few.names, [])
    XCTAssertEqual(system.swapDisk.requests.count, 0)
    try system.verify(area)

    // A page that fails to be written has two chances, and everything else is written once.
    let second = try TestSystem()
    let full = try second.fillMemory(spare: second.physical.reserve(for: .normal).rawValue + 12)
    let low = UInt64(second.frame(full, full.count / 2).rawValue) & ~63
    let bad = second.pages(of: full, in: frames(low, low + 64))[7]
    second.atPoll = {
      // For any slot that it goes to.
      var faults = DeviceFaults(seed: 3)
      faults.failed = second.place(full, bad).busyWord.sbusyCount > 0 ? 1000 : 0
      second.disk.faults = faults
    }
    second.swapDisk.discardHistory()
    let more = Steps()
    let failure = try XCTUnwrap(refusal(second.ask(request(64, low: low, high: low + 64), more)))
    second.atPoll = nil
    second.disk.faults = DeviceFaults()
    XCTAssertEqual(failure.answer, .later)
    XCTAssertEqual(more.abandoned.count, 1)
    XCTAssertLessThanOrEqual(more.passes.filter { $0.written > .zero }.count, 3)
    second.check()
    try second.verify(full)
  }

  // "if KVA allocation fails, the allocated memory segment will be freed and not leaked."
  func testAMapThatFailsGivesTheFramesBack() throws {
    let system = try TestSystem()
    let area = try system.fillMemory(spare: 160)
    let type = system.kmem.type(named: ShortName("test"))
    for attribute in [CacheAttribute.writeBack, .uncached] {
      var nth: Int64 = 0
      var failures = 0
      while true {
        let total = system.physical.freeCount + system.physical.count(.pageable)
        system.host.failures.pointee.hasFailed = false
        system.host.failures.pointee.countdown = nth
        let range = try? system.contiguous.contigmalloc(
          .kibibytes(128), type: type, where: request(32, aligned: 32).constraints, attribute: attribute)
        system.host.failures.pointee.countdown = -1
        system.check("\(attribute), point \(nth)")
        if let range {
          system.contiguous.contigfree(range.address, size: .kibibytes(128), type: type)
        } else {
          failures += 1
        }
        system.check("\(attribute), point \(nth)")
        XCTAssertEqual(system.physical.count(.contiguous), .zero, "\(attribute), point \(nth)")
        XCTAssertLessThanOrEqual(
          total.rawValue - (system.physical.freeCount + system.physical.count(.pageable)).rawValue, 2,
          "\(attribute), point \(nth): more than a page of tags and a table were kept")
        XCTAssertEqual(system.kmem.describe(type).inUse, 0)
        if !system.host.failures.pointee.hasFailed { break }
        nth += 1
        guard nth < 400 else { return XCTFail("points without end") }
      }
      XCTAssertGreaterThan(failures, 2)
    }
    try system.verify(area)
  }
}
