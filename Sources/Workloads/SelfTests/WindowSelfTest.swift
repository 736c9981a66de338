// selftest windows: every processor reads and writes frames through its page windows, in threads and in an interrupt.
// Then one does so on a second instance, whose tables no processor loads.
//
// Two threads share a processor and its window, so a tick that switched threads while a window is open would be
// detected: the second thread's window would be reported, or the first one would read the frames of the second.

import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension SelfTests {
  func testWindows() -> SelfTestOutcome {
    let outcome = testOwnWindows()
    guard case .passed = outcome else { return outcome }
    let workspace = MemorySystem.workspaceSize(ranges: 1)
    let second = loaning(.mebibytes(8), storage: workspace) { (loaned, workspace) throws(AssemblyError) in
      let base = UInt64(UInt(bitPattern: loaned))
      let machine = memory.machine.loaning(DirectMap(base: base), processors: 1)
      var request = BootRequest(machine: machine, workspace: workspace, firmwareRangeCount: 1)
      request.rules.lowMemory = .all
      let system = try MemorySystem.assemble(request) { _ in
        FirmwareRange(base: PhysicalAddress(0), length: .mebibytes(8), kind: .usable)
      }
      let tests = SelfTests(system, access, processors: 0, interrupts: interrupts)
      if case .broken(let flaw) = tests.testOwnWindows() { return flaw }
      return nil
    }
    // Its own windows were tested.
    if case .notBegun = second { return outcome }
    return second
  }

  private func testOwnWindows() -> SelfTestOutcome {
    let physical = memory.physical
    let before = physical.freeCount
    let count = max(1, 2 * processors)
    let pages = ByteCount(count * MemoryLayout<WindowUser>.stride).pagesRoundedUp
    guard
      let run = try? physical.allocate(run: pages, role: .wired, for: FrameOwner("self-test, page windows"))
    else { return .notBegun("no memory for the users of page windows") }
    let users = memory.machine.directMap.pointer(to: run.first).bindMemory(
      to: WindowUser.self, capacity: count)
    var flaw: StaticString?
    var ready = 0
    while ready < count, let frames = allocateFour() {
      (users + ready).initialize(to: WindowUser(memory, frames, interrupts))
      ready += 1
    }
    var started = 0
    if ready == count {
      started = runAll(users, count)
      for i in 0..<count where users[i].flaw != nil { flaw = users[i].flaw }
    }
    for i in 0..<ready { for k in 0..<4 { free(users[i].frames[k]) } }
    physical.free(run)
    if ready < count { return .notBegun("no memory for the frames of page windows") }
    if started < count { return .notBegun("too few threads for the users of page windows") }
    // Caches keep some memory of the threads.
    if flaw == nil && processors == 0 && physical.freeCount != before { flaw = "frames did not come back" }
    return SelfTestOutcome(flaw ?? memory.pageTables.checkInvariants())
  }

  /// Runs two users on each processor; one here where there are no threads. Returns how many have run.
  private func runAll(_ users: UnsafeMutablePointer<WindowUser>, _ count: Int) -> Int {
    guard processors > 0 else {
      users[0].work()
      return 1
    }
    var started = 0
    for i in 0..<count {
      users[i].thread = memory.machine.start(
        "selftest", .worker, on: 1 << UInt64(i / 2), users + i,
        { $0.unsafelyUnwrapped.assumingMemoryBound(to: WindowUser.self).pointee.work() })
    }
    for i in 0..<count {
      guard let thread = users[i].thread else { continue }
      memory.machine.join(thread)
      started += 1
    }
    return started
  }

  private func allocateFour() -> InlineArray<4, FrameNumber>? {
    var frames = InlineArray<4, FrameNumber>(repeating: .none)
    for k in 0..<4 {
      do throws(PhysicalMemoryError) {
        frames[k] = try memory.physical.allocate(
          BlockOrder(0), role: .wired, for: FrameOwner("self-test, page windows"))
      } catch {
        for done in 0..<k { free(frames[done]) }
        return nil
      }
    }
    return frames
  }

  private func free(_ frame: FrameNumber) { memory.physical.free(frame, BlockOrder(0)) }
}

/// A thread that uses the page windows of its processor over four frames of its own, and what it has found.
private struct WindowUser {
  let windows: PageWindows
  let directMap: DirectMap
  let frames: InlineArray<4, FrameNumber>
  let interrupts: InterruptGate?
  var thread: ThreadHandle?
  var turn = 0
  var flaw: StaticString?

  static var turns: Int { 1024 }
  static var words: Int { Int(Page.size) / 8 }

  init(_ memory: MemorySystem, _ frames: InlineArray<4, FrameNumber>, _ interrupts: InterruptGate?) {
    windows = memory.pageTables.windows
    directMap = memory.machine.directMap
    self.frames = frames
    self.interrupts = interrupts
  }

  /// The word that a frame holds at a place. It changes each time that the user has written all of its frames.
  private static func stamp(_ frame: FrameNumber, _ index: Int, _ turn: Int) -> UInt64 {
    UInt64(frame.rawValue) << 32 | UInt64(turn & ~63) << 16 | UInt64(index)
  }

  mutating func work() {
    while turn < Self.turns && flaw == nil {
      if turn % 64 == 0 { write() }
      read()
      turn += 1
    }
  }

  /// Writes two pairs of frames through windows, and checks them through the direct map.
  private mutating func write() {
    for pair in 0..<2 {
      let (first, second) = (frames[pair * 2], frames[pair * 2 + 1])
      windows.withMutableBytes(of: first, second, at: 0, count: 2 * Int(Page.size)) { bytes in
        for i in 0..<2 * Self.words {
          let frame = i < Self.words ? first : second
          bytes.storeBytes(
            of: Self.stamp(frame, i % Self.words, turn), toByteOffset: i * 8, as: UInt64.self)
        }
      }
    }
    for k in 0..<4 {
      let words = directMap.pointer(to: frames[k]).assumingMemoryBound(to: UInt64.self)
      for i in 0..<Self.words where words[i] != Self.stamp(frames[k], i, turn) {
        flaw = "a word that was written through a page window is not in its frame"
      }
    }
  }

  /// Reads a pair of frames through a window, and lets an interrupt read the other pair at the same time.
  private mutating func read() {
    let (first, second) = (frames[turn % 4], frames[(turn + 1) % 4])
    let window = windows.open(first, second, for: .read)
    var right = Self.holds(window, first, second, turn)
    if turn % 16 == 0, let interrupts {
      withUnsafeMutablePointer(to: &self) { me in
        interrupts.run(me) { $0.assumingMemoryBound(to: WindowUser.self).pointee.readInInterrupt() }
      }
      right = right && Self.holds(window, first, second, turn)
    }
    window.close()
    if !right { flaw = "a page window of a thread shows other words than its frames hold" }
  }

  private mutating func readInInterrupt() {
    let (first, second) = (frames[(turn + 2) % 4], frames[(turn + 3) % 4])
    let window = windows.open(first, second, for: .read)
    // With interrupts off, not all words can be read.
    if !Self.holds(window, first, second, turn, every: 8) {
      flaw = "a page window of an interrupt shows other words than its frames hold"
    }
    window.close()
  }

  private static func holds(
    _ window: borrowing OpenWindow, _ first: FrameNumber, _ second: FrameNumber, _ turn: Int,
    every step: Int = 1
  ) -> Bool {
    window.withBytes(at: 0, count: 2 * Int(Page.size)) { bytes in
      for i in stride(from: 0, to: 2 * words, by: step) {
        let frame = i < words ? first : second
        if bytes.load(fromByteOffset: i * 8, as: UInt64.self) != stamp(frame, i % words, turn) {
          return false
        }
      }
      return true
    }
  }
}
