// Threads that dirty memory beside another workload, one on each processor.

import MemoryPrimitives
import Paging
import Synchronization

/// Threads that write to random pages until they are stopped.
struct Dirtiers: ~Copyable {
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
