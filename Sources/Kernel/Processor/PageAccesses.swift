// Accesses to pageable memory that may fail: each answers an error in place of stopping the machine.

import CPlatform
import MemoryPrimitives
import Workloads

enum PageAccesses {
  /// The accesses as calls of a workload. An answer is 0, or one more than the number of the `PagingError` that the
  /// thread's last fault ended with.
  static var words: WordAccess {
    WordAccess(
      nil,
      loadWord: { _, address, value in cp_try_load(address, value) ? 0 : Thread.current.record.pagingError + 1
      },
      storeWord: { _, address, value in
        cp_try_store(address, value) ? 0 : Thread.current.record.pagingError + 1
      },
      loadPage: { _, address, words in
        cp_try_load_page(address, words) ? 0 : Thread.current.record.pagingError + 1
      })
  }
}
