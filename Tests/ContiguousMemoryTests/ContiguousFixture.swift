// Shared by the tests of contiguous memory: machines full of pages, and the steps of a request.

import ContiguousMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import TestSupport
import XCTest

/// The steps of one request, in their order.
final class Steps {
  var list: [ContiguousEvent] = []
  func note(_ event: ContiguousEvent) { list.append(event) }

  var passes: [PassReport] {
    list.compactMap { if case .pass(let report) = $0 { report } else { nil } }
  }
  var isolated: [FrameRun] { list.compactMap { if case .isolated(let run) = $0 { run } else { nil } } }
  var abandoned: [FrameRun] {
    list.compactMap { if case .abandoned(let run, _, _) = $0 { run } else { nil } }
  }
  var foundFree: Bool { list.contains { if case .foundFree = $0 { true } else { false } } }
  var moved: UInt64 { passes.reduce(0) { $0 + $1.moved.rawValue } }
  var written: UInt64 { passes.reduce(0) { $0 + $1.written.rawValue } }
  /// One word a step.
  var names: [String] {
    list.map {
      switch $0 {
      case .foundFree: "free"
      case .candidate: "candidate"
      case .isolated: "isolated"
      case .pass(let report): "\(report.pass.description)"
      case .fetched: "fetched"
      case .abandoned(_, let reason, _): "abandoned: \(reason.description)"
      case .laundered(let queue, _): "laundered: \(queue.description)"
      }
    }
  }
}

func request(
  _ count: UInt64, low: UInt64 = 0, high: UInt64? = nil, aligned: UInt64 = 1, boundary: UInt64? = nil
) -> ContiguousRequest {
  var constraints = RunConstraints()
  constraints.low = PhysicalAddress(low << Page.shift)
  if let high { constraints.high = PhysicalAddress(high << Page.shift) }
  constraints.alignment = Alignment(aligned << Page.shift)!
  if let boundary { constraints.boundary = Alignment(boundary << Page.shift)! }
  return ContiguousRequest(PageCount(count), where: constraints)
}

/// `first` up to `end`.
func frames(_ first: UInt64, _ end: UInt64) -> FrameRun {
  FrameRun(first: FrameNumber(UInt32(first)), count: PageCount(end - first))
}

extension TestSystem {
  /// Makes a request, and returns the run, or the failure.
  func ask(
    _ request: ContiguousRequest, _ steps: Steps = Steps()
  ) -> Result<FrameRun, ContiguousFailure> {
    do throws(ContiguousFailure) {
      return .success(try contiguous.allocContig(request, observe: steps.note))
    } catch {
      return .failure(error)
    }
  }

  /// Gives a run back.
  func give(_ run: FrameRun) { contiguous.releaseContig(run) }

  /// Dirty pages everywhere but in about `spare` frames, which lie scattered among them, one by one.
  func fillMemory(spare: UInt64) throws -> Area {
    let (target, reserve) = (paging.freeTarget.rawValue, physical.reserve(for: .normal).rawValue)
    // Neither the daemon nor the reserve is to have a hand in this.
    setTarget(0)
    set("vm.reserve.normal", 0)
    defer {
      setTarget(target)
      set("vm.reserve.normal", reserve)
    }
    // The frames of the object and its range themselves.
    let free = physical.freeCount.rawValue
    let probe = try self.area(free - spare - 12)
    let used = free - physical.freeCount.rawValue
    release(probe)
    let area = try self.area(free - spare - used)
    let all = takeAll().sorted { $0.rawValue < $1.rawValue }
    let kept = UInt64(all.count) - area.count
    var aside: [FrameNumber] = []
    for (i, frame) in all.enumerated() {
      if UInt64(aside.count) * UInt64(all.count) < UInt64(i + 1) * kept {
        aside.append(frame)
      } else {
        physical.free(FrameRun(first: frame, count: .one))
      }
    }
    try fill(area)
    giveBack(aside)
    return area
  }

  /// The roles of all frames, for what is to be outside of a run.
  func frames(of area: Area) -> [UInt64: FrameNumber] {
    var frames: [UInt64: FrameNumber] = [:]
    for page in 0..<area.count {
      let what = place(area, page)
      if what.place == .resident { frames[page] = what.frame }
    }
    return frames
  }

  func statistic(_ name: String) -> UInt64 {
    for i in 0..<memory.statistics.count where "\(memory.statistics[i].name)" == name {
      return memory.statistics[i].value
    }
    XCTFail("no statistic \(name)")
    return 0
  }

  func set(_ name: String, _ value: UInt64) {
    for i in 0..<memory.statistics.count where "\(memory.statistics[i].name)" == name {
      XCTAssertEqual(memory.statistics[i].set(value), .accepted)
    }
  }

  /// A lookup table of the pages in `run`, with their pages.
  func pages(of area: Area, in run: FrameRun) -> [UInt64] {
    (0..<area.count).filter {
      let what = place(area, $0)
      return what.place == .resident && run.contains(what.frame!)
    }
  }

  /// Checks that a run is the caller's: role, one wire, nothing of it free.
  func checkGranted(
    _ run: FrameRun, _ request: ContiguousRequest, _ note: @autoclosure () -> String = "",
    file: StaticString = #filePath, line: UInt = #line
  ) {
    XCTAssertEqual(run.count, request.count, note(), file: file, line: line)
    let (first, end) = (run.first.address.rawValue, run.first.address.rawValue + run.count.bytes.rawValue)
    XCTAssertGreaterThanOrEqual(first, request.constraints.low.rawValue, note(), file: file, line: line)
    XCTAssertLessThanOrEqual(end, request.constraints.high.rawValue, note(), file: file, line: line)
    XCTAssertEqual(first % request.constraints.alignment.rawValue, 0, note(), file: file, line: line)
    if let boundary = request.constraints.boundary?.rawValue {
      XCTAssertEqual(first / boundary, (end - 1) / boundary, note(), file: file, line: line)
    }
    for i in 0..<run.count.rawValue {
      let what = physical.whatIs(run.first + PageCount(i))
      XCTAssertEqual(what.role, .contiguous, note(), file: file, line: line)
      XCTAssertEqual(what.busyWord, .wiredOnce, note(), file: file, line: line)
    }
  }
}

/// The failure of a request that must be refused.
func refusal(
  _ result: Result<FrameRun, ContiguousFailure>, _ file: StaticString = #filePath, _ line: UInt = #line
) -> ContiguousFailure? {
  switch result {
  case .success(let run):
    XCTFail("granted: \(run)", file: file, line: line)
    return nil
  case .failure(let failure): return failure
  }
}
