// bench contig, contig-one, contig-low, contig-busy: runs of frames on a machine full of dirty pages.

import ContiguousMemory
import CPlatform
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Synchronization
import Workloads

extension Shell {
  /// Fills memory up to `percent` with dirty pages, or as far as possible without writing any, and runs `body`. Then
  /// verifies the pages, and frees them and the runs that `body` kept.
  func withDirtyMemory(
    _ percent: UInt64, _ name: StaticString, _ sheet: BenchSheet, _ body: (DirtyPages) -> Void
  ) throws(CommandError) {
    let (wanted, there) = (share(percent), physical.count(.pageable))
    let kept = memory.paging.freeTarget + PageCount(UInt64(256))
    let room = physical.freeCount - min(physical.freeCount, kept)
    guard wanted > there, room + there >= share(percent * 3 / 4) else {
      return sheet.leaveOut(name, "\(percent) % of memory can't be filled: too much of it is in use")
    }
    let lastID = contigEntries.pointee.lastID
    let fill = try fill(min(wanted - there, room))
    if !state.pointee.stopped {
      sheet.printState(name, dirty: physical.count(.pageable), of: physical.total)
      body(fill)
    }
    giveBackContig(above: lastID)
    var verdict = DirtyPages.Verdict()
    if !state.pointee.stopped { verify(fill, &verdict) }
    fill.release(memory)
    sheet.add(verdict)
  }

  /// Requests a run and keeps it. Answers the failure when it is refused, else nil.
  private func takeRun(_ asked: RunAsked, _ tally: inout ContigTally) -> ContiguousFailure? {
    let type = memory.kmem.type(named: ShortName("console"))
    let before = memory.paging.figures
    // Pages of runs, as the passes report them, and those that the daemon wrote elsewhere for the request. The
    // daemon's other writes are its own.
    var (inRuns, fetched): (UInt64, UInt64) = (0, 0)
    let start = cp_cycles()
    do throws(ContiguousFailure) {
      let range = try memory.contiguous.contigmalloc(asked.size, type: type, where: asked.constraints) {
        if case .pass(let report) = $0 { inRuns += (report.moved + report.written).rawValue }
        if case .fetched(let outcome) = $0 { fetched += outcome.written.rawValue }
      }
      tally.cycles &+= cp_cycles() &- start
      tally.granted += 1
      tally.gained += range.frames.count.rawValue
      _ = keepContig(range, asked.size, type, .writeBack)
      tally.count(before, memory.paging.figures, inRuns, fetched)
      return nil
    } catch {
      tally.cycles &+= cp_cycles() &- start
      tally.count(before, memory.paging.figures, inRuns, fetched)
      return error
    }
  }

  /// Nine tenths of memory dirty, runs of 2 MiB requested one by one: by the old strategy, and by ours.
  func benchContig(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig"
    var asked = RunAsked(.mebibytes(2))
    asked.constraints.alignment = Alignment(2 << 20).unsafelyUnwrapped
    let goal = min(256, (physical.total.rawValue / 2 + asked.count.rawValue / 2) / asked.count.rawValue)
    guard goal > 0, ContigEntries.capacity - contigEntries.pointee.count >= Int(goal) else {
      return sheet.leaveOut(name, "there is no room for \(goal) runs; contig free all")
    }
    let needed = PageCount(goal * asked.count.rawValue)
    guard memory.paging.swap.figures.free >= needed else {
      return sheet.leaveOut(name, "it takes a swap device with \(needed.bytes) free; boot with SWAP=")
    }
    let inForce = memory.contiguous.strategy
    defer { memory.contiguous.setStrategy(inForce) }
    memory.contiguous.setStrategy(.old)
    try askForRuns(goal, asked, name, sheet)
    if state.pointee.stopped { return }
    memory.contiguous.setStrategy(.new)
    try askForRuns(goal, asked, name, sheet)
  }

  /// Requests runs with the current strategy. The old one serves for comparison, and has no goal.
  private func askForRuns(
    _ goal: UInt64, _ asked: RunAsked, _ name: StaticString, _ sheet: BenchSheet
  ) throws(CommandError) {
    let isOld = memory.contiguous.strategy == .old
    try withDirtyMemory(90, name, sheet) { fill in
      var tally = ContigTally()
      // Counted from the first request to the last, whatever thread moved or wrote the page.
      let before = memory.paging.figures
      var bar = Bar(self)
      for i in 0..<goal {
        _ = takeRun(asked, &tally)
        if !bar.goesOn(Line(name), i + 1, of: goal, "runs", every: 1) { break }
      }
      bar.end()
      let after = memory.paging.figures
      let spent = after.moved - before.moved + (after.written - before.written)
      if state.pointee.stopped { return }
      sheet.add(isOld ? .contigOldGranted : .contigGranted, tally.granted, atLeast: isOld ? nil : goal)
      sheet.add(
        isOld ? .contigOldCost : .contigCost, tally.gained == 0 ? 0 : spent * 1000 / tally.gained)
      if !isOld { sheet.add(.contigOutside, tally.outside) }
      sheet.add(isOld ? .contigOldInstructions : .contigInstructions, tally.cycles / goal)
    }
  }

  /// Six tenths of memory dirty, one run of 2 MiB.
  func benchContigOne(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig-one"
    guard contigEntries.pointee.count < ContigEntries.capacity else {
      return sheet.leaveOut(name, "there is no room for a run; contig free all")
    }
    var asked = RunAsked(.mebibytes(2))
    asked.constraints.alignment = Alignment(2 << 20).unsafelyUnwrapped
    try withDirtyMemory(60, name, sheet) { _ in
      var tally = ContigTally()
      let before = memory.paging.figures
      let failure = takeRun(asked, &tally)
      let after = memory.paging.figures
      sheet.add(.contigOneGranted, failure == nil ? 1 : 0)
      sheet.add(.contigOne, tally.cycles)
      sheet.add(.contigOneMoved, after.moved - before.moved)
      sheet.add(.contigOneWritten, after.written - before.written)
    }
  }

  /// Runs that only few addresses satisfy, and one that is a quarter of memory.
  func benchContigLow(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig-low"
    guard contigEntries.pointee.count + 4 <= ContigEntries.capacity else {
      return sheet.leaveOut(name, "there is no room for 4 runs; contig free all")
    }
    func low(_ size: ByteCount, boundary: UInt64) -> RunAsked {
      var asked = RunAsked(size)
      asked.constraints.high = PhysicalAddress(16 << 20)
      asked.constraints.boundary = Alignment(boundary)
      return asked
    }
    func isGranted(_ asked: RunAsked) -> UInt64 {
      var tally = ContigTally()
      return takeRun(asked, &tally) == nil ? 1 : 0
    }
    try withDirtyMemory(60, name, sheet) { _ in
      sheet.add(.contigLow64, isGranted(low(.kibibytes(64), boundary: 64 << 10)))
      sheet.add(.contigLow256, isGranted(low(.kibibytes(256), boundary: 1 << 20)))
      var tally = ContigTally()
      let failure = takeRun(low(.kibibytes(256), boundary: 64 << 10), &tally)
      sheet.add(.contigLowNever, failure?.answer == .never ? 1 : 0)
      sheet.add(.contigLowNeverCost, tally.cycles)
      // A machine of 4 GiB has a little less, because its firmware keeps some.
      guard physical.total.bytes >= .mebibytes(3968) else {
        return sheet.leaveOut("contig-1G", "it takes a machine of 4 GiB")
      }
      sheet.add(.contigGibibyte, isGranted(RunAsked(.gibibytes(1))))
    }
  }

  // MARK: While every processor dirties memory

  /// A thousand runs of 256 KiB, kept 64 at a time, while a thread on each processor writes to pages of an object that
  /// is larger than memory.
  func benchContigBusy(_ sheet: BenchSheet) throws(CommandError) {
    let name: StaticString = "contig-busy"
    guard let view = state.pointee.host.executive else {
      return sheet.leaveOut(name, "there are no threads here")
    }
    let count = share(120)
    guard memory.paging.swap.figures.free >= count else {
      return sheet.leaveOut(name, "it takes a swap device with \(count.bytes) free; boot with SWAP=")
    }
    let fill = try fill(count)
    let dirtiers = Dirtiers(access, fill.address, fill.count)
    let kept: UInt64 = 64
    guard contigEntries.pointee.count + Int(kept) <= ContigEntries.capacity else {
      fill.release(memory)
      return sheet.leaveOut(name, "there is no room for \(kept) runs; contig free all")
    }
    var asked = RunAsked(.kibibytes(256))
    asked.constraints.alignment = Alignment(256 << 10).unsafelyUnwrapped
    var tally = ContigTally()
    let lastID = contigEntries.pointee.lastID
    let hadThreads = dirtiers.run(on: memory.machine, processors: min(view.processorCount, 64)) {
      var bar = Bar(self)
      for i in 0..<1000 as Range<UInt64> {
        _ = takeRun(asked, &tally)
        if i % kept == kept - 1 { giveBackContig(above: lastID) }
        if !bar.goesOn(Line(name), i + 1, of: 1000, "runs", every: 1) { break }
      }
      bar.end()
    }
    giveBackContig(above: lastID)
    fill.release(memory)
    if state.pointee.stopped { return }
    guard hadThreads else { return sheet.leaveOut(name, "there is no thread for each processor") }
    sheet.add(.contigBusy, tally.granted)
  }
}

/// Threads that write to random pages until they are stopped.
private struct Dirtiers: ~Copyable {
  private let access: WordAccess
  private let address: VirtualAddress
  private let count: PageCount
  private let started = Atomic<UInt64>(0)
  private let isOver = Atomic<Bool>(false)

  init(_ access: WordAccess, _ address: VirtualAddress, _ count: PageCount) {
    self.access = access
    self.address = address
    self.count = count
  }

  /// Runs `body` while there is such a thread on each processor. False when one could not be started; `body` is not
  /// run then.
  borrowing func run(on machine: Machine, processors: Int, _ body: () -> Void) -> Bool {
    withUnsafePointer(to: self) { place in
      var threads = InlineArray<64, ThreadHandle?>(repeating: nil)
      var isWhole = true
      for processor in 0..<processors where isWhole {
        threads[processor] = machine.start(
          "dirtier", .worker, on: 1 << UInt64(processor), UnsafeMutableRawPointer(mutating: place),
          { $0.unsafelyUnwrapped.assumingMemoryBound(to: Dirtiers.self).pointee.work() })
        isWhole = threads[processor] != nil
      }
      if isWhole { body() }
      isOver.store(true, ordering: .releasing)
      for processor in 0..<processors {
        if let thread = threads[processor] { machine.join(thread) }
      }
      return isWhole
    }
  }

  private borrowing func work() {
    var random = SeededRandom(seed: started.add(1, ordering: .relaxed).newValue)
    while !isOver.load(ordering: .acquiring) {
      // A page that can't be brought in at this moment is left to the next round.
      do throws(PagingError) {
        try access.store(address + PageCount(random.below(count.rawValue)), random.next())
      } catch {
        continue
      }
    }
  }
}

/// The results and the costs of requests for runs.
private struct ContigTally {
  var granted: UInt64 = 0
  var gained: UInt64 = 0
  var cycles: UInt64 = 0
  /// Pages that were moved or written during the requests, neither for a run nor by the page daemon.
  var outside: UInt64 = 0

  /// `fetched` of the pages that the daemon has written were for the request itself.
  mutating func count(
    _ before: PagingFigures, _ after: PagingFigures, _ inRuns: UInt64, _ fetched: UInt64
  ) {
    let all = after.moved - before.moved + (after.written - before.written)
    let byDaemon = after.writtenForDaemon - before.writtenForDaemon
    outside += all - min(all, inRuns + (byDaemon - min(byDaemon, fetched)))
  }
}
