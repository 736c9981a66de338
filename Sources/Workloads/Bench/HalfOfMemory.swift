// Pageable memory that comes and goes beside another workload: half of memory, dirtied an eighth at a time, then freed
// as a whole, and dirtied again.

import KernelMemory
import MemoryPrimitives
import Paging

/// The half that is dirtied.
struct HalfOfMemory {
  private let memory: MemorySystem
  private let count: PageCount
  private let access: WordAccess
  private var object: MemoryObject?
  private var address = VirtualAddress(0)
  private var done: UInt64 = 0
  /// Whether all of it has been dirty at some time, and no page was refused.
  private(set) var wasDirtied = false
  private var hasFailed = false

  init(_ memory: MemorySystem, _ access: WordAccess) {
    self.memory = memory
    count = DirtyPages.share(50, of: memory.physical)
    self.access = access
  }

  mutating func advance() {
    guard !hasFailed else { return }
    if done == count.rawValue { return release() }
    do throws(PagingError) {
      if object == nil {
        let made = try memory.paging.createObject(ShortName("bench"), count)
        do throws(PagingError) {
          address = try memory.paging.map(made, count: count)
        } catch {
          memory.paging.destroy(made)
          throw error
        }
        object = made
      }
      let end = min(count.rawValue, done + (count.rawValue + 7) / 8)
      while done < end {
        try access.store(address + PageCount(done), done)
        done += 1
      }
      if done == count.rawValue { wasDirtied = true }
    } catch {
      hasFailed = true
      wasDirtied = false
    }
  }

  mutating func release() {
    if let object {
      memory.paging.unmap(address, count)
      memory.paging.destroy(object)
    }
    object = nil
    done = 0
  }
}
