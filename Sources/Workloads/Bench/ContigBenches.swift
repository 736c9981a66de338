// bench contig, contig-one, contig-low, contig-busy: runs of frames on a machine full of dirty pages.

import ContiguousMemory
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

extension RunConstraints {
  fileprivate static func aligned(to bytes: UInt64) -> RunConstraints {
    RunConstraints(alignment: Alignment(bytes).unsafelyUnwrapped)
  }

  /// Below 16 MiB, across no multiple of `boundary`.
  fileprivate static func low(boundary: UInt64) -> RunConstraints {
    RunConstraints(high: PhysicalAddress(16 << 20), boundary: Alignment(boundary))
  }
}

extension KernelBenches {
  /// Fills memory up to `percent` with dirty pages, or as far as possible without writing any, and runs `body`. Then
  /// frees the runs that `body` was granted, verifies the pages and frees them.
  private func withDirtyMemory(
    _ percent: UInt64, _ name: StaticString, _ body: (inout RunRequests) -> Void
  ) throws(FillFailure) {
    let (wanted, there) = (DirtyPages.share(percent, of: physical), physical.count(.pageable))
    let kept = memory.paging.freeTarget + PageCount(UInt64(256))
    let capacity = physical.freeCount - min(physical.freeCount, kept)
    guard wanted > there, capacity + there >= DirtyPages.share(percent * 3 / 4, of: physical) else {
      return host.leftOut(name, "\(percent) % of memory can't be filled: too much of it is in use")
    }
    let fill = try fill(min(wanted - there, capacity))
    if !isStopped {
      host.prepared(name, dirty: physical.count(.pageable))
      var requests = RunRequests(memory)
      body(&requests)
      requests.release()
    }
    verifyAndRelease(fill)
  }

  /// Nine tenths of memory dirty, runs of 2 MiB requested one by one: by the old strategy, and by ours.
  func measureContig() throws(FillFailure) {
    let name: StaticString = "contig"
    // On a small machine, as many as half of its memory holds.
    let goal = min(256, (physical.total.rawValue / 2 + 256) / 512)
    let needed = PageCount(goal * 512)
    guard goal > 0, memory.paging.swap.figures.free >= needed else {
      return host.leftOut(name, "it takes a swap device with \(needed.bytes) free; boot with SWAP=")
    }
    let inForce = memory.contiguous.strategy
    defer { memory.contiguous.setStrategy(inForce) }
    memory.contiguous.setStrategy(.old)
    try requestRuns(goal, name)
    if isStopped { return }
    memory.contiguous.setStrategy(.new)
    try requestRuns(goal, name)
  }

  /// Requests runs with the current strategy. The old one serves for comparison, and has no goal.
  private func requestRuns(_ goal: UInt64, _ name: StaticString) throws(FillFailure) {
    let isOld = memory.contiguous.strategy == .old
    try withDirtyMemory(90, name) { requests in
      // Counted from the first request to the last, whatever thread moved or wrote the page.
      let before = memory.paging.figures
      for i in 0..<goal {
        requests.request(.mebibytes(2), where: .aligned(to: 2 << 20))
        if host.progress(name, i + 1, of: goal, "runs") == .stop { break }
      }
      let after = memory.paging.figures
      let spent = after.moved - before.moved + (after.written - before.written)
      if isStopped { return }
      let each = requests.gained == 0 ? 0 : spent * 1000 / requests.gained
      if isOld {
        host.measured(.contigOldGranted, requests.granted)
        host.measured(.contigOldCost, each)
        host.measured(.contigOldInstructions, requests.cycles / goal)
      } else {
        host.measured(.contigGranted, requests.granted, goal: .atLeast(goal))
        host.measured(.contigCost, each)
        host.measured(.contigOutside, requests.outside)
        host.measured(.contigInstructions, requests.cycles / goal)
      }
    }
  }

  /// Six tenths of memory dirty, one run of 2 MiB.
  func measureContigOne() throws(FillFailure) {
    try withDirtyMemory(60, "contig-one") { requests in
      let before = memory.paging.figures
      requests.request(.mebibytes(2), where: .aligned(to: 2 << 20))
      let after = memory.paging.figures
      host.measured(.contigOneGranted, requests.granted)
      host.measured(.contigOne, requests.cycles)
      host.measured(.contigOneMoved, after.moved - before.moved)
      host.measured(.contigOneWritten, after.written - before.written)
    }
  }

  /// Runs that only few addresses satisfy, and one that is a quarter of memory.
  func measureContigLow() throws(FillFailure) {
    try withDirtyMemory(60, "contig-low") { requests in
      func isGranted(_ size: ByteCount, _ constraints: RunConstraints) -> UInt64 {
        requests.request(size, where: constraints) == nil ? 1 : 0
      }
      host.measured(.contigLow64, isGranted(.kibibytes(64), .low(boundary: 64 << 10)))
      host.measured(.contigLow256, isGranted(.kibibytes(256), .low(boundary: 1 << 20)))
      let before = requests.cycles
      let failure = requests.request(.kibibytes(256), where: .low(boundary: 64 << 10))
      host.measured(.contigLowNever, failure?.answer == .never ? 1 : 0)
      host.measured(.contigLowNeverCost, requests.cycles - before)
      // A machine of 4 GiB has a little less, because its firmware keeps some.
      guard physical.total.bytes >= .mebibytes(3968) else {
        return host.leftOut("contig-1G", "it takes a machine of 4 GiB")
      }
      host.measured(.contigGibibyte, isGranted(.gibibytes(1), RunConstraints()))
    }
  }

  /// A thousand runs of 256 KiB, kept 64 at a time, while a thread on each processor writes to pages of an object that
  /// is larger than memory.
  func measureContigBusy() throws(FillFailure) {
    let name: StaticString = "contig-busy"
    guard host.processors > 0 else { return host.leftOut(name, "there are no threads here") }
    let count = DirtyPages.share(120, of: physical)
    guard memory.paging.swap.figures.free >= count else {
      return host.leftOut(name, "it takes a swap device with \(count.bytes) free; boot with SWAP=")
    }
    let fill = try fill(count)
    let dirtiers = Dirtiers(access, fill.address, fill.count)
    var requests = RunRequests(memory)
    let hadThreads = dirtiers.run(on: memory.machine, processors: min(host.processors, 64)) {
      for i in 1...1000 as ClosedRange<UInt64> {
        requests.request(.kibibytes(256), where: .aligned(to: 256 << 10))
        if i % 64 == 0 { requests.release() }
        if host.progress(name, i, of: 1000, "runs") == .stop { break }
      }
    }
    requests.release()
    fill.release(memory)
    if isStopped { return }
    guard hadThreads else { return host.leftOut(name, "there is no thread for each processor") }
    host.measured(.contigBusy, requests.granted)
  }
}
