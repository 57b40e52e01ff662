// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user-blk device. The only room that knows vhost and virtio.
